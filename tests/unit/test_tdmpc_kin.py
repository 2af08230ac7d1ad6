"""TD-MPC and TCRL: every new loss term by a slow loop, where gradients go, how weights begin, ramps, what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.models import make_batch
from tests.unit.test_implicit import count, vectors
from tests.unit.test_tdmpc2 import SEARCH, SMALL, now
from worldmodel.agents.tdmpc2.agent import TDMPC2
from worldmodel.agents.tdmpc2.ramp import Ramp, RampConfig
from worldmodel.agents.values.ensemble_q import EnsembleQConfig
from worldmodel.configs.tdmpc2 import configured, tdmpc2
from worldmodel.distributions import NoisedMode, Plain
from worldmodel.errors import MisfitError, UserError
from worldmodel.models.analytic import double_integrator
from worldmodel.models.implicit import ImplicitModelConfig, Latent
from worldmodel.nn.normed import NormedMLP
from worldmodel.planning.categorical import CategoricalCEM
from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import make_replay
from worldmodel.returns import steps_ahead
from worldmodel.rng import Stream
from worldmodel.types import ActionSpec, Batch, Step, Update

KIN = ("tdmpc", "tcrl", "tcrl_free", "fowm")
SPEC = vectors(5, 2)


def made(mode: str, seed: int = 0, **changes) -> TDMPC2:
    """Small, with weights that are nobody's initial ones."""
    config = configured("nano", mode=mode, ends="never", task="walker_walk")
    search = {"samples": 12, "policy_samples": 3, "elites": 4, "iterations": 2}
    config = replace(
        config, model=replace(config.model, latent=6, units=8), policy=replace(config.policy, units=8),
        value=replace(config.value, units=8), planner=replace(config.planner, **search),
        evaluator=replace(config.evaluator, **search),
    )
    agent = replace(config, **changes).build(SPEC, seed=seed)
    with torch.no_grad(), Stream(seed=7):
        for p in agent.modules.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return agent


def data(seed: int = 0, rows: int = 4, steps: int = 6, *, weighted: bool = False) -> Batch:
    batch = make_batch(SPEC, rows, steps, seed=seed, firsts=((1, 2), (2, 4)) if steps > 4 else ((1, 2),))
    return replace(batch, weight=torch.linspace(0.2, 1.0, rows)) if weighted else batch


def each(agent: TDMPC2, mode: str, seed: int):
    return agent.learn(data(seed, weighted=mode in ("tdmpc", "fowm")))


@torch.no_grad()
def test_tdmpcs_losses_weights_and_priorities_against_the_definition() -> None:
    agent, batch, rho = made("tdmpc", ceiling=0.0), data(weighted=True), 0.5
    model, value = agent.model, agent.value
    with Stream(seed=3):
        total, states, metrics, priority = agent.compute_model_loss(batch)
    with Stream(seed=3):
        # the same noise of the policy: nothing else is drawn before it
        seen = model.encode(batch.obs, shift=False)
        bootstrap = value.target(seen[:, 1:], agent.policy(seen[:, 1:]).sample())
    aims = model.slow(batch.obs)
    want, share = 0.0, [0.0] * 4
    inside = ~batch.is_first[:, 1:]
    z = [seen[b, 0] for b in range(4)]
    for t in range(5):
        rows = inside[:, t].sum()
        for b in range(4):
            x = torch.cat([z[b], batch.action[b, t]])
            ahead, q = model.dynamics(x), value.fast(x)[:, 0]
            if inside[b, t]:
                alive = 1.0 - batch.is_terminal[b, t + 1].float()
                y = batch.reward[b, t + 1] + 0.99 * alive * bootstrap[b, t]
                loss = 2.0 * (ahead - aims[b, t + 1]).square().mean()
                loss += 0.5 * (model.reward(x)[0] - batch.reward[b, t + 1]) ** 2
                loss += 0.1 * ((q[0] - y) ** 2 + (q[1] - y) ** 2)
                want += float(rho**t * batch.weight[b] * loss) / float(5 * rows)
                share[b] += rho**t * float((q - y).abs().sum())
            z[b] = ahead if inside[b, t] else seen[b, t + 1]
    assert float(total) == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(priority[:, 0], torch.tensor(share) + 1e-6)
    assert priority[:, 1:].isinf().all() and not torch.equal(aims, seen)
    torch.testing.assert_close(states.z[:, -1], torch.stack(z))
    assert metrics.keys() == {"value/target", "loss/consistency", "loss/reward", "loss/value"}


@torch.no_grad()
def test_tdmpcs_policy_climbs_the_least_q_in_every_imagined_state() -> None:
    agent, states = made("tdmpc"), Latent(z=torch.randn(3, 6, 6))
    with Stream(seed=3):
        loss, _ = agent.compute_policy_loss(states, {})
    with Stream(seed=3):
        noise = (0.05 * torch.randn(3, 6, 2)).clamp(-0.3, 0.3)
    action = (torch.tanh(agent.policy.net(states.z)) + noise).clamp(-1 + 1e-6, 1 - 1e-6)
    q = agent.value.fast(torch.cat([states.z, action], -1)).squeeze(-1).amin(0)
    want = sum(-float(q[:, t].mean()) * 0.5**t for t in range(6))
    assert float(loss) == pytest.approx(want, rel=1e-5)


def test_a_sequence_beyond_the_ceiling_moves_nothing_and_tells_its_loss_all_the_same() -> None:
    agent, batch = made("tdmpc"), data(weighted=True)
    bad = replace(batch, reward=batch.reward.clone())
    bad.reward[0, 3] = 1e6
    with Stream(seed=3):
        told = agent.compute_model_loss(bad)[2]
    for name, ceiling in (("with", 1e4), ("without", 0.0)):
        agent = made("tdmpc", ceiling=ceiling)
        with Stream(seed=3):
            total = agent.compute_model_loss(bad)[0]
        agent.optimizer.backward(total)
        assert (float(agent.optimizer.grad.abs().max()) < 100) == (name == "with")
    assert float(told["loss/reward"]) > 1e4


@torch.no_grad()
def test_tcrls_model_agrees_in_direction_with_the_slow_encoder() -> None:
    agent, batch, rho = made("tcrl_free"), data(), 0.9
    total, *_ = agent.compute_model_loss(batch)
    aims, z = agent.model.slow(batch.obs), agent.model.encode(batch.obs, shift=False)
    seen, inside, want = z.clone(), ~batch.is_first[:, 1:], 0.0
    z = [seen[b, 0] for b in range(4)]
    for t in range(5):
        for b in range(4):
            x = torch.cat([z[b], batch.action[b, t]])
            ahead = agent.model.dynamics(x)
            if inside[b, t]:
                cosine = (ahead @ aims[b, t + 1]) / (ahead.norm() * aims[b, t + 1].norm())
                loss = 2 - 2 * cosine + (agent.model.reward(x)[0] - batch.reward[b, t + 1]) ** 2
                want += float(rho**t * loss) / float(5 * inside[:, t].sum())
            z[b] = ahead if inside[b, t] else seen[b, t + 1]
    assert float(total) == pytest.approx(want, rel=1e-5)


@torch.no_grad()
def test_tcrls_critics_learn_three_rewards_ahead_as_far_as_the_episode_goes() -> None:
    agent, batch = made("tcrl_free"), data()
    ends = torch.zeros_like(batch.is_terminal)
    ends[0, 3] = True
    batch = replace(batch, is_terminal=ends)
    with Stream(seed=3):
        loss, states, metrics = agent.compute_value_loss(batch)
    z = agent.model.encode(batch.obs, shift=False)
    # row 1 ends on arriving in step 1: an episode begins in step 2; row 2's begins in step 4, beyond three rewards
    at = [3, 1, 3, 3]
    with Stream(seed=3):
        later = torch.stack([z[b, at[b]] for b in range(4)])
        bootstrap = agent.value.target(later, agent.policy(later).sample())
    want = 0.0
    for b in range(4):
        y = sum(0.99**t * float(batch.reward[b, t + 1]) for t in range(at[b]))
        y += 0.0 if ends[b, at[b]] else 0.99 ** at[b] * float(bootstrap[b])
        x = torch.cat([z[b, 0], batch.action[b, 0]])
        q = agent.value.fast(agent.value.trunk(x))[:, 0]
        want += float((q - y).square().sum()) / 4
    assert float(loss) == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(states.z[:, 0], z[:, 0])
    assert float(metrics["loss/value"]) == pytest.approx(want, rel=1e-5)


def test_steps_ahead_against_a_loop() -> None:
    g = torch.Generator().manual_seed(0)
    reward, first = torch.randn(40, 6, generator=g), torch.rand(40, 6, generator=g) < 0.3
    got = steps_ahead(reward=reward, is_first=first, discount=0.9, steps=4)
    for b in range(40):
        total, t = 0.0, 0
        while t < 4 and not first[b, t + 1]:
            total += 0.9**t * float(reward[b, t + 1])
            t += 1
        assert int(got.at[b]) == t and float(got.discount[b]) == pytest.approx(0.9**t)
        assert float(got.reward[b]) == pytest.approx(total, abs=1e-5)
    assert len(got.at.unique()) == 5


def test_an_episode_that_ends_at_once_teaches_critics_nothing() -> None:
    agent, batch = made("tcrl_free"), make_batch(SPEC, 3, 6, firsts=((1, 1),))
    with Stream(seed=3):
        loss = agent.compute_value_loss(batch)[0]
    other = replace(batch, reward=batch.reward.clone(), action=batch.action.clone())
    other.reward[1], other.action[1] = 9.0, 0.5
    with Stream(seed=3):
        assert torch.equal(loss, agent.compute_value_loss(other)[0])


@pytest.mark.parametrize("mode", ["tdmpc", "tcrl", "tcrl_free"])
def test_gradients_reach_what_each_loss_teaches_and_nothing_slow(mode: str) -> None:
    agent, batch = made(mode), data(weighted=mode == "tdmpc")
    trained = {name: p for name, p in agent.modules.named_parameters() if p.requires_grad}
    assert not any("slow" in name for name in trained) and any("slow" in n for n, _ in agent.modules.named_parameters())

    def reached() -> set[str]:
        found = {name.split(".")[0] for name, p in trained.items() if p.grad is not None and p.grad.any()}
        for optimizer in agent._optimizers.values():
            optimizer.zero_grad()
        return found

    total, states, *_ = agent.compute_model_loss(batch)
    agent.optimizer.backward(total)
    # TCRL's latents are constants to its critics
    assert all(p.grad.any() for name, p in trained.items() if name.startswith("model."))
    assert reached() == ({"model", "value"} if mode == "tdmpc" else {"model"})
    if mode != "tdmpc":
        loss, states, _ = agent.compute_value_loss(batch)
        agent.value_optimizer.backward(loss)
        assert all(p.grad.any() for name, p in trained.items() if name.startswith("value."))
        assert reached() == {"value"} and not states.z.requires_grad
    agent.policy_optimizer.backward(agent.compute_policy_loss(states, {})[0])
    assert reached() == {"policy"}


def test_weights_begin_orthogonal_and_tdmpcs_scalars_at_0() -> None:
    for mode in ("tdmpc", "tcrl", "tcrl_free"):
        agent = configured("nano", mode=mode, ends="never", task="walker_walk").build(SPEC)
        weights = [m.weight for m in agent.modules.modules() if isinstance(m, nn.Linear)]
        weights += [w for layer in agent.value.fast.layers for w in layer.weight.detach()]
        for weight in weights:
            if mode == "tdmpc" and 1 in weight.shape:
                assert not weight.any()
                continue
            tall = weight.detach() if weight.shape[0] >= weight.shape[1] else weight.detach().T
            torch.testing.assert_close(tall.T @ tall, torch.eye(tall.shape[1]), atol=1e-5, rtol=0)
        biases = [m.bias for m in agent.modules.modules() if isinstance(m, nn.Linear)]
        assert len(weights) > 10 and not any(b.any() for b in biases)
        for slow, fast in ((agent.model.slow[0], agent.model.encoder), (agent.value.slow, agent.value.fast)):
            assert all(torch.equal(a, b) for a, b in zip(slow.parameters(), fast.parameters()))


def test_parameters_are_those_of_the_authors_code() -> None:
    # walker: 24 numbers seen, 6 done; counted from the layers of algorithm/helper.py
    agent = configured("5m", mode="tdmpc", ends="never", task="walker_walk").build(vectors(24, 6))
    parts = (agent.model.encoder, agent.model.project, agent.model.dynamics, agent.model.reward, agent.policy)
    assert [count(p) for p in parts] == [6_400, 12_850, 317_490, 292_353, 291_846]
    assert count(agent.value) == 2 * 293_377 and count(agent.modules) == 1_507_693
    dog = configured("5m", mode="tdmpc", task="dog_walk")
    assert (dog.model.latent, dog.planner.iterations, dog.lr) == (100, 8, 3e-4)
    run = tdmpc2("cartpole_balance", mode="tdmpc")
    assert run.env.repeat == 8 and run.replay.sampler == "prioritized" and run.replay.length == 6
    # TCRL: encoder 24 -> 512 -> 512 -> 50, critics with one first layer
    agent = configured("5m", mode="tcrl_free", ends="never", task="walker_walk").build(vectors(24, 6))
    assert count(agent.model.encoder) + count(agent.model.project) == 24 * 512 + 512 + 512 * 513 + 512 * 50 + 50
    assert count(agent.value) == 56 * 512 + 3 * 512 + 2 * (512 * 513 + 513)
    hard = configured("5m", mode="tcrl_free", task="humanoid_run")
    assert (hard.model.latent, hard.steps, hard.policy.noise, hard.ramp.updates) == (100, 1, 0.2, 122_500)


def test_slow_networks_follow_after_every_second_update() -> None:
    agent = made("tdmpc")
    slow = [*agent.model.slow.parameters(), *agent.value.slow.parameters()]
    fast = [*agent.model.encoder.parameters(), *agent.model.project.parameters(), *agent.value.fast.parameters()]
    for moves in (True, False, True):
        before = [p.clone() for p in slow]
        each(agent, "tdmpc", 0)
        for p, old, new in zip(slow, before, fast):
            torch.testing.assert_close(p, torch.lerp(old, new, 0.01) if moves else old)


def test_ramps_end_where_they_are_to_and_stay_there() -> None:
    config = RampConfig(updates=100, horizon=1, std=0.5, noise=1.0)
    ramp = Ramp(config, horizon=5, std=0.05, noise=0.1, device=torch.device("cpu"))
    held = ramp.std
    begun = ((0, 1, 0.5, 1.0), (24, 1, 0.392, 0.784), (25, 2, 0.3875, 0.775))
    for updates, depth, std, noise in (*begun, (75, 4, 0.1625, 0.325), (100, 5, 0.05, 0.1), (900, 5, 0.05, 0.1)):
        ramp.follow(torch.tensor(float(updates)))
        assert int(ramp.depth) == depth and float(ramp.std) == pytest.approx(std) and held is ramp.std
        assert float(ramp.noise) == pytest.approx(noise)
    still = Ramp(RampConfig(updates=100, std=0.5), horizon=5, std=0.05, noise=0.1, device=torch.device("cpu"))
    assert int(still.depth) == 5 and float(still.noise) == pytest.approx(0.1) and still.widens and not still.shortens


@pytest.mark.parametrize("bootstrap", ["none", "last", "every"])
def test_a_plan_cut_off_is_worth_what_the_shorter_one_is(bootstrap) -> None:
    model = double_integrator()
    value = lambda features: features.sum(-1)  # noqa: E731
    base = ExpectedReturn(
        model=model, action=ActionSpec(kind="continuous", size=1), discount=0.9, value=value, bootstrap=bootstrap
    )
    state = model.initial(2)
    actions = torch.rand(2, 7, 5, 1) * 2 - 1
    for depth in (1, 3, 5):
        cut = replace(base, depth=torch.tensor(float(depth)))
        torch.testing.assert_close(cut.score(state, actions), base.score(state, actions[:, :, :depth]))


def test_the_first_plans_are_one_step_and_wide() -> None:
    agent = made("tdmpc")
    each(agent, "tdmpc", 0)
    carry = agent.initial(2)
    for first in (True, False):
        _, carry = agent.act(carry, now(agent, first=first), explore=True)
        assert carry.plan.mean[:, 0].any() and not carry.plan.mean[:, 1:].any()
        assert (carry.plan.std >= 0.4998 * 0.999).all()
    agent.updates.fill_(10_000)
    agent.ramp.follow(agent.updates)
    _, carry = agent.act(carry, now(agent), explore=True)
    assert carry.plan.mean[:, 1:].any() and float(carry.plan.std.min()) < 0.4


def test_momentum_keeps_a_share_of_the_mean() -> None:
    agent = made("tdmpc")
    plans = []
    for momentum in (0.0, 0.25):
        planner = replace(SEARCH, horizon=5, iterations=1, momentum=momentum)
        begin = agent.initial(1).plan
        begin.mean[:, 1:] = 0.5
        with Stream(seed=1), torch.no_grad():
            state = agent.model.initial(1)
            plans.append(planner(agent.objective, state, begin, torch.tensor([False]))[0].mean)
    old = torch.full((1, 5, 2), 0.5)
    old[:, -1] = 0.0
    torch.testing.assert_close(plans[1], 0.25 * old + 0.75 * plans[0])


def test_noise_is_cut_off_but_where_it_explores_and_gradients_pass() -> None:
    mean = torch.full((50_000, 1), 0.9).atanh().requires_grad_()
    policy = NoisedMode(mean, torch.tensor(1.0), 0.3)
    torch.manual_seed(0)
    action = policy.sample()
    assert float(action.detach().min()) == pytest.approx(0.6, abs=1e-4) and float(action.detach().max()) < 1
    (grad,) = torch.autograd.grad(action.sum(), mean)
    torch.testing.assert_close(grad, 1 - torch.tanh(mean.detach()) ** 2)
    assert float(policy.explore().detach().min()) < -0.9
    assert torch.equal(policy.mode(), torch.tanh(mean))
    normal = torch.distributions.Normal(torch.tanh(mean), 1.0)
    torch.testing.assert_close(policy.log_prob(action), normal.log_prob(action).sum(-1))
    torch.testing.assert_close(policy.entropy(), normal.entropy().sum(-1))


def test_a_policy_explores_with_its_ramp_and_evaluates_without_noise() -> None:
    agent = made("tcrl_free")
    each(agent, "tcrl_free", 0)
    many = now(agent, 300)
    with torch.no_grad():
        mode = agent.policy(agent.model.encode(many.obs, shift=False)).mode()
    explored, _ = agent.act(agent.initial(300), many, explore=True)
    evaluated, _ = agent.act(agent.initial(300), many, explore=False)
    assert torch.equal(evaluated, mode) and float((explored - mode).abs().max()) > 0.5
    agent.updates.fill_(1e6)
    agent.ramp.follow(agent.updates)
    quiet, _ = agent.act(agent.initial(300), many, explore=True)
    assert float((quiet - mode).std()) == pytest.approx(0.1, rel=0.2)


def test_plain_scalars_are_themselves() -> None:
    x = torch.randn(3, 4, 1)
    assert torch.equal(Plain(x).mean(), x[..., 0])
    torch.testing.assert_close(Plain(x).loss(torch.ones(3, 4)), (x[..., 0] - 1) ** 2)


def test_a_first_layer_is_normalised_and_bounded_in_mlps_and_ensembles_alike() -> None:
    net = NormedMLP(4, 8, 2, 3, activation="elu", norm="first", init="orthogonal")
    x = torch.randn(5, 4)
    hidden = torch.tanh(F.layer_norm(net[0].linear(x), (8,)))
    torch.testing.assert_close(net(x), net[2](F.elu(net[1].linear(hidden))))
    config = EnsembleQConfig(members=2, space="plain", units=8, activation="elu", norm="first", out_scale=1.0)
    q = config.build(3, ActionSpec(kind="continuous", size=1))
    one, two, last = (layer.weight[1] for layer in q.fast.layers)
    want = F.elu(torch.tanh(F.layer_norm(x @ one, (8,))) @ two) @ last
    torch.testing.assert_close(q.every(x[:, :3], x[:, 3:])[1], want[:, 0])


def test_starts_keep_their_priority_where_another_sequence_covers_them() -> None:
    config = ReplayConfig(
        capacity=100, batch_size=3, length=4, sampler="prioritized", online_fraction=0.0, priority_exponent=1.0
    )
    replay = make_replay(config, SPEC, {}, 1, device=torch.device("cpu"), seed=0)
    for t in range(30):
        no = torch.zeros(1, dtype=torch.bool)
        replay.add(
            Step(
                obs={"state": torch.zeros(1, 5)}, reward=torch.zeros(1), is_first=no | (t == 0), is_last=no,
                is_terminal=no,
            ),
            torch.zeros(1, 2), {},
        )
    batch = replace(replay.sample(), index=torch.tensor([[0, 12], [0, 10], [0, 11]]))
    priority = torch.full((3, 4), torch.inf)
    priority[:, 0] = torch.tensor([7.0, 5.0, 6.0])
    replay.write_back(batch, Update(metrics={}, memory={}, priority=priority))
    held = replay._sampler.per_step["priority"]
    assert held[10:14].tolist() == [5.0, 6.0, 7.0, 1.0]


@pytest.mark.parametrize("mode", KIN)
def test_it_goes_on_from_its_state_bit_for_bit(mode: str) -> None:
    one, other = made(mode), made(mode, seed=3)
    for seed in range(3):
        each(one, mode, seed)
    other.load_state_dict(one.state_dict())
    carry, twin = one.initial(2, seed=4), other.initial(2, seed=4)
    for i in range(3):
        step = now(one, first=i == 0, seed=i)
        (a, carry), (b, twin) = one.act(carry, step, explore=True), other.act(twin, step, explore=True)
        assert torch.equal(a, b)
        each(one, mode, 20 + i), each(other, mode, 20 + i)
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(one.ramp._now, other.ramp._now)


def test_a_bad_update_of_any_of_three_optimisers_moves_nothing_slow() -> None:
    agent = made("tcrl_free")
    before = {name: x.clone() for name, x in agent.modules.state_dict().items() if "slow" in name}
    batch = data()
    batch.reward[0, 2] = torch.nan
    metrics = agent.learn(batch).metrics
    assert float(metrics["update/skipped"]) == 1 and torch.isnan(metrics["loss/value"])
    assert all(torch.equal(x, agent.modules.state_dict()[name]) for name, x in before.items())
    assert all(torch.isfinite(x).all() for x in agent.state_dict().values())


@pytest.mark.parametrize("mode", KIN)
def test_parts_are_traced_as_one_graph_each(mode: str) -> None:
    agent = made(mode)
    for name in agent.parts:
        agent.parts[name] = torch.compile(agent.parts[name], fullgraph=True, backend="eager")
    twin = made(mode)
    for one in (agent, twin):
        each(one, mode, 0)
        one.act(one.initial(2), now(one), explore=True)
    for name, x in twin.state_dict().items():
        torch.testing.assert_close(agent.state_dict()[name], x, msg=name)


def fowm(**changes) -> TDMPC2:
    return made("fowm", **changes)


@torch.no_grad()
def test_fowms_losses_against_the_definition() -> None:
    agent, batch, rho = fowm(), data(weighted=True), 0.5
    model, value = agent.model, agent.value
    batch = replace(batch, is_terminal=batch.is_terminal & False)
    with Stream(seed=3):
        total, _, metrics, priority = agent.compute_model_loss(batch)
    with Stream(seed=3):
        # the two that are asked what was done were worth; targets ask none
        asked = value.draw()
    seen, aims = model.encode(batch.obs, shift=False), model.slow(batch.obs)
    v = agent.states.value(seen)
    z, want, share, inside = [seen[b, 0] for b in range(4)], 0.0, [0.0] * 4, ~batch.is_first[:, 1:]
    for t in range(5):
        for b in range(4):
            x = torch.cat([z[b], batch.action[b, t]])
            ahead, q = model.dynamics(x), value.fast(x)[:, 0]
            if inside[b, t]:
                y = batch.reward[b, t + 1] + 0.99 * v[b, t + 1]
                u = value.slow(x)[asked, 0].amin() - agent.states.net(z[b])[0]
                loss = 20 * (ahead - aims[b, t + 1]).square().mean()
                loss += 0.5 * (model.reward(x)[0] - batch.reward[b, t + 1]) ** 2
                loss += 0.1 * (q - y).square().sum() + 0.1 * (0.7 if u > 0 else 0.3) * u**2
                want += float(rho**t * batch.weight[b] * loss) / float(5 * inside[:, t].sum())
                share[b] += rho**t * float((q - y).abs().sum())
            z[b] = ahead if inside[b, t] else seen[b, t + 1]
    assert float(total) == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(priority[:, 0], torch.tensor(share) + 1e-6)
    assert {"loss/states", "loss/value"} <= metrics.keys()


@torch.no_grad()
def test_fowms_policy_clones_what_was_better_the_more_the_better_it_was() -> None:
    agent, batch = fowm(), data()
    states = Latent(z=torch.rand(4, 6, 6))
    with Stream(seed=3):
        loss, _ = agent.compute_policy_loss(states, agent._done(batch))
    with Stream(seed=3):
        asked = agent.value.draw()
    inside, want = ~batch.is_first[:, 1:], 0.0
    for t in range(5):
        for b in range(4):
            if inside[b, t]:
                x = torch.cat([states.z[b, t], batch.action[b, t]])
                advantage = agent.value.slow(x)[asked, 0].amin() - agent.states.net(states.z[b, t])[0]
                weight = min(float((3.0 * advantage).exp()), 100.0)
                gap = torch.tanh(agent.policy.net(states.z[b, t])) - batch.action[b, t]
                want += 0.5**t * weight * 0.5 * float(gap.square().sum()) / float(5 * inside[:, t].sum())
    assert float(loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fowms_gradients_reach_what_each_loss_teaches(precision) -> None:
    agent, batch = fowm(precision=precision), data(weighted=True)
    trained = {name: p for name, p in agent.modules.named_parameters() if p.requires_grad}
    total, states, *_ = agent.compute_model_loss(batch)
    agent.optimizer.backward(total)
    assert {name for name, p in trained.items() if p.grad.any()} == {n for n in trained if not n.startswith("policy.")}
    agent.optimizer.zero_grad()
    agent.policy_optimizer.backward(agent.compute_policy_loss(states, agent._done(batch))[0])
    assert {name for name, p in trained.items() if p.grad.any()} == {n for n in trained if n.startswith("policy.")}


def test_a_penalty_of_0_is_exactly_the_plain_plan_and_nobody_is_asked() -> None:
    plain, free = fowm(pessimism=0.0), fowm(pessimism=0.0)

    def refuse(state, action):
        raise AssertionError("asked")

    free.objective = replace(free.objective, doubt=refuse)
    bare = fowm(pessimism=0.0)
    bare.objective = replace(bare.objective, doubt=None, doubts_end=False)
    doubting = fowm(pessimism=5.0)
    plans = []
    for agent in (plain, free, bare, doubting):
        each(agent, "tdmpc", 0)
        _, carry = agent.act(agent.initial(3, seed=1), now(agent, 3, first=True), explore=True)
        plans.append(carry.plan)
    for plan in plans[1:3]:
        assert torch.equal(plan.mean, plans[0].mean) and torch.equal(plan.action, plans[0].action)
    assert not torch.equal(plans[3].mean, plans[0].mean)


@torch.no_grad()
def test_doubt_is_paid_for_every_action_and_for_the_policys_where_a_plan_ends() -> None:
    agent = fowm(pessimism=2.0)
    z = agent.model.encode(now(agent, 2).obs, shift=False)
    actions = torch.rand(2, 3, 5, 2) * 2 - 1
    with Stream(seed=1):
        got = agent.objective.score(Latent(z=z), actions)
    with Stream(seed=1):
        noise = (0.05 * torch.randn(6, 1, 2)).clamp(-0.3, 0.3)
        asked = agent.value.draw()
        other = (0.05 * torch.randn(6, 1, 2)).clamp(-0.3, 0.3)
    for b in range(2):
        for n in range(3):
            s, want = z[b], 0.0
            for t in range(5):
                x = torch.cat([s, actions[b, n, t]])
                want += 0.99**t * float(agent.model.reward(x)[0] - 2 * agent.value.fast(x)[:, 0].std())
                s = agent.model.dynamics(x)
            mode = torch.tanh(agent.policy.net(s))
            told = [torch.cat([s, (mode + e[b * 3 + n, 0]).clamp(-1 + 1e-6, 1 - 1e-6)]) for e in (noise, other)]
            end = float(agent.value.fast(told[0])[asked, 0].amin() - 2 * agent.value.fast(told[1])[:, 0].std())
            assert float(got[b, n]) == pytest.approx(want + 0.99**5 * end, rel=1e-4)


def test_fowms_heads_begin_as_its_authors() -> None:
    agent = configured("5m", mode="fowm", ends="never", task="Hopper-v5").build(vectors(11, 3))
    assert agent.config.pessimism == 20 and agent.config.expectile.expectile == 0.7
    assert not agent.value.fast.layers[-1].weight.any() and not agent.model.reward[-1].weight.any()
    last = agent.states.net[-1].weight.detach()
    torch.testing.assert_close(last @ last.T, torch.eye(1))
    assert count(agent.states) == 50 * 512 + 512 + 1024 + 512 * 513 + 513
    z = agent.model.encode(now(agent, 50).obs, shift=False)
    assert 0 < float(z.detach().min()) < 0.3 < 0.7 < float(z.detach().max()) < 1


SWITCHES = {
    "slow aim": {"model": {"aim": "slow"}}, "cosine": {"model": {"consistency": "cosine"}},
    "free": {"model": {"form": "free"}}, "sigmoid": {"model": {"form": "sigmoid"}},
    "plain rewards": {"model": {"space": "plain"}}, "plain values": {"value": {"space": "plain"}},
    "least": {"value": {"judges": "min"}},
    "shared": {"value": {"trunk": "shared", "norm": "none"}}, "noised": {"policy": {"form": "noised"}},
    "orthogonal": {"model": {"init": "orthogonal"}}, "apart": {"critic": "apart"},
    "three": {"critic": "apart", "steps": 3},
    "ramp": {"ramp": RampConfig(updates=4, horizon=1, std=0.5)}, "slowly": {"slow_every": 3},
    "expectile": {"bootstrap": "expectile"},
    "advantage": {"bootstrap": "expectile", "policy_target": "advantage"},
    "pessimism": {"pessimism": 3.0},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_alone_learns_and_acts(name: str) -> None:
    base = configured("nano", ends="never")
    changes = {
        key: replace(getattr(base, key), **x) if isinstance(x, dict) else x for key, x in SWITCHES[name].items()
    }
    search = {"samples": 12, "policy_samples": 3, "elites": 4, "iterations": 1}
    agent = replace(
        base, planner=replace(base.planner, **search), evaluator=replace(base.evaluator, **search), **changes
    ).build(SPEC)
    before = agent.optimizer.flat.clone()
    for seed in range(2):
        metrics = agent.learn(data(seed, steps=4)).metrics
        assert all(torch.isfinite(x).all() for x in metrics.values()) and float(metrics["update/skipped"]) == 0
    assert (agent.optimizer.flat != before).float().mean() > 0.9
    action, _ = agent.act(agent.initial(2), now(agent), explore=True)
    assert action.shape == (2, 2) and action.abs().max() <= 1


def test_what_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(MisfitError, match=r"sequences need 4 steps, got 3; take a larger replay.length"):
        made("tcrl").learn(data(steps=3))
    with pytest.raises(MisfitError, match=r"take replay.sampler='uniform'"):
        made("tcrl").learn(data(weighted=True))
    with pytest.raises(UserError, match="--mode tdmpc is of continuous actions"):
        configured("nano", mode="tdmpc", discrete=True)
    with pytest.raises(UserError, match="widths of its paper"):
        configured("19m", mode="tcrl")
    with pytest.raises(ValueError, match="steps=3 is of critic='apart'"):
        replace(configured("nano"), steps=3)
    with pytest.raises(ValueError, match="noise must be positive"):
        replace(configured("nano").policy, noise=0.0)
    with pytest.raises(ValueError, match="a shared trunk needs"):
        EnsembleQConfig(trunk="shared")
    with pytest.raises(ValueError, match="project='none' is for form='simplex'"):
        ImplicitModelConfig(form="free", project="none")
    with pytest.raises(ValueError, match="momentum"):
        replace(SEARCH, momentum=2.0)
    for changes, said in (
        ({"policy_target": "advantage", "bootstrap": "policy"}, "take bootstrap='expectile'"),
        ({"critic": "apart"}, "take critic='joint'"),
        ({"value": replace(SMALL.value, members=1, drawn=1)}, "members >= 2"),
    ):
        with pytest.raises(ValueError, match=said):
            fowm(**changes)
    config = configured("nano", discrete=True)
    assert isinstance(config.planner, CategoricalCEM)
    with pytest.raises(MisfitError, match=r"ramp.std is of PolicyMPPI"):
        replace(config, ramp=RampConfig(updates=2, std=0.5)).build(
            replace(SPEC, action=ActionSpec(kind="discrete", size=2))
        )
