"""The agent: where gradients go, what is skipped and kept, what acts when, and every switch alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.models import make_batch, make_spec
from tests.unit.test_implicit import vectors
from worldmodel.agents.tdmpc2.agent import TDMPC2, TDMPC2Config
from worldmodel.agents.tdmpc2.policy import PriorConfig, Spread
from worldmodel.agents.values.ensemble_q import EnsembleQConfig
from worldmodel.configs import planners
from worldmodel.configs.tdmpc2 import configured
from worldmodel.distributions import ClampedNormal
from worldmodel.errors import MisfitError, UserError
from worldmodel.models.implicit import ImplicitModelConfig
from worldmodel.nn.normed import NormedEncoderConfig
from worldmodel.planning.categorical import CategoricalCEM
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.protocols import Compiles, Imagines, Reacts
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import make_replay
from worldmodel.rng import Stream
from worldmodel.types import ActionSpec, Step, Update

SEARCH = PolicyMPPI(samples=12, policy_samples=3, elites=4, iterations=2)
SMALL = TDMPC2Config(
    model=ImplicitModelConfig(encoder=NormedEncoderConfig(units=16), latent=16, units=16, bins=21),
    policy=PriorConfig(units=16), value=EnsembleQConfig(units=16, members=3, bins=21),
    planner=replace(SEARCH, exploration=1.0), evaluator=replace(SEARCH, select="mean"),
)
DISCRETE = CategoricalCEM(horizon=3, samples=12, policy_samples=3, elites=4, iterations=2)


def made(spec=None, seed=0, **changes) -> TDMPC2:
    return replace(SMALL, **changes).build(spec or vectors(5, 2), seed=seed)


def discrete() -> TDMPC2:
    spec = replace(vectors(5, 3), action=ActionSpec(kind="discrete", size=3))
    return made(spec, planner=replace(DISCRETE, select="sample"), evaluator=DISCRETE)


def now(agent: TDMPC2, rows: int = 2, *, first: bool = False, seed: int = 0) -> Step:
    batch = make_batch(agent.spec, rows, 1, seed=seed, firsts=())
    no = torch.zeros(rows, dtype=torch.bool)
    return Step(
        obs={key: x[:, 0] for key, x in batch.obs.items()}, reward=torch.zeros(rows), is_first=no | first, is_last=no,
        is_terminal=no,
    )


def taught(agent: TDMPC2, updates: int = 3) -> TDMPC2:
    for seed in range(updates):
        agent.learn(make_batch(agent.spec, 6, 4, seed=seed, firsts=((1, 2),)))
    return agent


def test_it_offers_its_model_and_its_steps_and_no_reflex():
    agent = made()
    assert isinstance(agent, Imagines) and isinstance(agent, Compiles) and not isinstance(agent, Reacts)
    assert agent.memory_spec == {} and agent.memory(agent.initial(2)) == {}


@pytest.mark.parametrize("name", planners.CONTINUOUS + planners.DISCRETE)
def test_every_shipped_planner_acts_in_its_model(name: str) -> None:
    agent = made() if name in planners.CONTINUOUS else discrete()
    by = planners.evaluated(agent.config, getattr(planners, name)(trajectories=12, horizon=2)).build(agent.spec)
    by.load_state_dict(agent.state_dict())
    action, carry = by.act(by.initial(2), now(agent, first=True), explore=False)
    assert action.shape == (2, agent.spec.action.size) and bool((action.abs() <= 1).all())
    assert by.memory_spec == {} and by.memory(carry) == {}


@pytest.mark.parametrize("make", [made, discrete], ids=["continuous", "discrete"])
def test_the_policys_loss_moves_the_policy_alone_and_the_models_everything_else(make):
    agent = taught(make())
    batch = make_batch(agent.spec, 6, 4, seed=9, firsts=((1, 2),))
    trained = {name: p for name, p in agent.modules.named_parameters() if p.requires_grad}
    mine = {name for name in trained if name.startswith("policy.")}

    def reached() -> set[str]:
        return {name for name, p in trained.items() if p.grad is not None and p.grad.any()}

    agent.policy_optimizer.zero_grad()
    total, states, *_ = agent.compute_model_loss(batch)
    agent.optimizer.backward(total)
    assert reached() == trained.keys() - mine
    agent.optimizer.zero_grad()
    agent.policy_optimizer.backward(agent.compute_policy_loss(states, {})[0])
    assert reached() == mine


def test_the_policy_goes_where_the_q_functions_say():
    agent = made(lr=1e-2, policy=replace(SMALL.policy, bonus=0.0))
    states = agent.compute_model_loss(make_batch(agent.spec, 16, 4, firsts=()))[1]
    for kind in (made, discrete):
        agent = kind()
        judge = lambda features, action, **_: action[..., 0] * 3 - action[..., 1] * 3  # noqa: E731
        agent.value.value = judge  # type: ignore[method-assign]
        for _ in range(60):
            loss, _ = agent.compute_policy_loss(states, {})
            agent.policy_optimizer._cuts = [(cut, 1e-2) for cut, _ in agent.policy_optimizer._cuts]
            agent.policy_optimizer.backward(loss)
            agent.policy_optimizer.step()
        action = agent.policy(states.z).mode().mean((0, 1))
        assert action[0] > 0.8 and action[1] < (0.1 if agent.spec.action.kind == "discrete" else -0.8)


def test_targets_take_the_least_of_two_slow_members_and_stop_where_the_episode_ended_for_good():
    agent = taught(made())
    batch = make_batch(agent.spec, 4, 3, firsts=())
    batch = replace(batch, is_terminal=torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool))
    seen = agent.model.unroll(batch).encoded
    with Stream(seed=5):
        target = agent.critic.target(batch, seen)
    with Stream(seed=5):
        action = agent.policy(seen.z).sample()
        members = agent.value.draw()
    both = agent.value._scalar(agent.value.slow(torch.cat([seen.z, action], -1), members)).mean()
    assert both.shape == (2, 4, 2)
    alive = (~batch.is_terminal[:, 1:]).float()
    torch.testing.assert_close(target, batch.reward[:, 1:] + 0.99 * alive * both.amin(0))
    assert torch.equal(target[0, 0], batch.reward[0, 1]) and torch.equal(target[2, 1], batch.reward[2, 2])


def test_all_members_or_the_drawn_alone_are_computed_with_one_result():
    one, all_ = (taught(made(value=replace(SMALL.value, evaluates=how, dropout=0.0))) for how in ("drawn", "all"))
    for (name, x), y in zip(one.modules.state_dict().items(), all_.modules.state_dict().values()):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=name)


def test_a_member_is_drawn_as_often_as_any_other_and_never_twice():
    value = EnsembleQConfig(units=4, bins=5).build(3, ActionSpec(kind="continuous", size=1))
    torch.manual_seed(0)
    drawn = torch.stack([value.draw() for _ in range(2000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    shares = torch.bincount(drawn.flatten(), minlength=5) / 4000
    assert (shares - 0.2).abs().max() < 0.02


def test_slow_members_follow_at_their_rate_and_not_after_a_bad_update():
    value = EnsembleQConfig(units=4, bins=5, rate=0.25).build(3, ActionSpec(kind="continuous", size=1))
    before = [p.clone() for p in value.slow.parameters()]
    with torch.no_grad():
        for p in value.fast.parameters():
            p.add_(1.0)
    value.track(torch.tensor(False))
    assert all(torch.equal(p, q) for p, q in zip(before, value.slow.parameters()))
    value.track(torch.tensor(True))
    for p, q in zip(before, value.slow.parameters()):
        torch.testing.assert_close(q, p + 0.25)


def test_the_spread_of_values_follows_the_percentiles_and_is_at_least_1():
    spread = Spread(0.5)
    assert float(spread(torch.zeros(7))) == 1.0
    values = torch.arange(101.0)
    assert float(spread(values)) == pytest.approx(0.5 + 0.5 * 90.0)
    before = float(spread.scale)
    assert float(spread(torch.tensor([math.nan, 1.0]))) == before


def test_a_non_finite_update_changes_nothing_but_its_counters():
    agent = taught(made())
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    batch = make_batch(agent.spec, 6, 4, firsts=())
    batch.reward[0, 1] = math.nan
    metrics = agent.learn(batch).metrics
    assert float(metrics["update/bad_streak"]) == 1 and float(metrics["update/skipped"]) == 1
    after = agent.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"count/updates", "count/bad_streak", "count/bad_total", "rng/learn"}
    assert float(agent.learn(make_batch(agent.spec, 6, 4, firsts=())).metrics["update/bad_streak"]) == 0


@pytest.mark.parametrize("make", [made, discrete], ids=["continuous", "discrete"])
def test_it_goes_on_from_its_state_bit_for_bit(make):
    one, other = taught(make()), make(seed=3) if make is made else make()
    other.load_state_dict(one.state_dict())
    assert other.calls == 3
    carry, twin = one.initial(2, seed=4), other.initial(2, seed=4)
    for i in range(3):
        step = now(one, first=i == 0, seed=i)
        (a, carry), (b, twin) = one.act(carry, step, explore=True), other.act(twin, step, explore=True)
        assert torch.equal(a, b)
        batch = make_batch(one.spec, 6, 4, seed=20 + i, firsts=())
        one.learn(batch), other.learn(batch)
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_chance_acts_until_the_first_update_and_then_the_planner():
    agent = made()
    carry, many = agent.initial(400), now(agent, 400)
    action, carry = agent.act(carry, many, explore=True)
    assert action.abs().max() <= 1 and not carry.plan.mean.any()
    assert float(action.std()) == pytest.approx(1 / math.sqrt(3), rel=0.1)
    evaluated, _ = agent.act(agent.initial(400), many, explore=False)
    assert not torch.equal(evaluated, action)
    _, carry = taught(agent, 1).act(carry, many, explore=True)
    assert carry.plan.mean.any()
    choice, _ = discrete().act(discrete().initial(300), now(discrete(), 300), explore=True)
    assert (choice.sum(-1) == 1).all() and (choice.mean(0) - 1 / 3).abs().max() < 0.1


def test_rows_that_begin_an_episode_forget_their_plan_and_others_go_on_with_it():
    agent = taught(made())
    carry = agent.initial(2)
    _, carry = agent.act(carry, now(agent, first=True), explore=False)
    plan = carry.plan.mean.clone()
    seen = []

    def planner(objective, state, plan, first):
        seen.append((plan.mean.clone(), first.clone()))
        return plan, {}

    agent.planners[False] = planner
    step = replace(now(agent), is_first=torch.tensor([True, False]))
    agent.act(carry, step, explore=False)
    assert torch.equal(seen[0][0], plan) and seen[0][1].tolist() == [True, False]


def test_actions_of_many_numbers_get_further_iterations():
    assert [made(vectors(5, size)).planners[True].iterations for size in (2, 19, 20)] == [2, 2, 4]


def test_the_discount_is_that_of_the_episode_where_its_length_is_known():
    assert made().discount == 0.99
    assert made(replace(vectors(5, 2), max_steps=100)).discount == 0.95
    assert made(replace(vectors(5, 2), max_steps=None), discount=0.9).discount == 0.9
    assert made(discounting="fixed", discount=0.9).discount == 0.9


def test_a_policy_may_act_without_planning():
    agent = taught(made(behaviour="policy"))
    step = now(agent)
    action, carry = agent.act(agent.initial(2), step, explore=False)
    with torch.no_grad():
        torch.testing.assert_close(action, agent.policy(agent.model.encode(step.obs, shift=False)).mode())
    assert not carry.plan.mean.any()


CLAMPED = replace(SMALL.policy, form="clamped", min_log_std=-3.0, max_log_std=1.0)
BOOTSTRAPPED = {"policy": CLAMPED, "policy_target": "planner", "reanalyse_every": 2, "reanalyse_rows": 2}


def with_memory(agent: TDMPC2, seed: int = 0):
    batch = make_batch(agent.spec, 6, 4, seed=seed, firsts=((1, 2),))
    size = agent.memory_spec["expert"].shape[0]
    return replace(batch, memory={"expert": torch.rand(6, 4, size, generator=torch.Generator().manual_seed(seed))})


def test_a_clamped_normal_is_torchs_normal_but_for_its_samples():
    mean, log_std = torch.randn(4, 2), torch.randn(4, 2)
    ours = ClampedNormal(mean, log_std)
    theirs = torch.distributions.Normal(torch.tanh(mean), log_std.exp())
    other = torch.distributions.Normal(torch.rand(4, 2), torch.rand(4, 2) + 0.1)
    torch.testing.assert_close(ours.kl(other.mean, other.stddev), torch.distributions.kl_divergence(theirs, other))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    action = torch.rand(4, 2)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    assert ours.sample().abs().max() <= 1


def test_the_policy_learns_what_was_planned_and_chance_where_nothing_was():
    for make in (lambda: made(**BOOTSTRAPPED), lambda: bootstrapped_discrete()):
        agent = make()
        batch = with_memory(agent)
        expert = batch.memory["expert"]
        expert[:] = torch.tensor([0.5, -0.5, 0.2, 0.4] if agent.spec.action.size == 2 else [0.1, 0.7, 0.2])
        expert[3:] = 0.0
        agent.policy_optimizer._cuts = [(cut, 1e-2) for cut, _ in agent.policy_optimizer._cuts]
        states = agent.compute_model_loss(batch)[1]
        states.z[3:] = 1 - states.z[3:]
        for _ in range(300):
            agent.policy_optimizer.backward(agent.compute_policy_loss(states, batch.memory)[0])
            agent.policy_optimizer.step()
        policy = agent.policy(states.z)
        if agent.spec.action.size == 2:
            near(policy.mean[:3], [0.5, -0.5])
            near(policy.log_std[:3].exp(), [0.2, 0.4])
            near(policy.mean[3:], [0.0, 0.0])
        else:
            near(policy.probs[:3], [0.1, 0.7, 0.2])
            near(policy.probs[3:], [1 / 3, 1 / 3, 1 / 3])


def near(x: torch.Tensor, row: list[float]) -> None:
    torch.testing.assert_close(x, torch.tensor(row).expand(x.shape), atol=0.15, rtol=0)


def bootstrapped_discrete() -> TDMPC2:
    spec = replace(vectors(5, 3), action=ActionSpec(kind="discrete", size=3))
    return made(spec, policy_target="planner", planner=replace(DISCRETE, select="sample"), evaluator=DISCRETE)


def test_plans_are_kept_in_replay_and_some_are_made_anew():
    agent = made(**BOOTSTRAPPED)
    assert agent.memory_spec["expert"].shape == (4,)
    carry = agent.initial(2)
    assert not agent.memory(carry)["expert"].any()
    batch = with_memory(agent)
    first, second = agent.learn(batch), agent.learn(batch)
    assert second.memory == {} and first.memory["expert"].shape == (6, 4, 4)
    assert torch.equal(first.memory["expert"][2:], batch.memory["expert"][2:])
    assert not torch.equal(first.memory["expert"][:2], batch.memory["expert"][:2])
    assert (first.memory["expert"][:2, :, 2:] >= agent.planners[True].min_std).all()
    _, carry = agent.act(carry, now(agent), explore=True)
    torch.testing.assert_close(agent.memory(carry)["expert"][:, :2], carry.plan.mean[:, 0])


def test_replay_delivers_what_was_planned_for_every_step():
    agent = made(**BOOTSTRAPPED)
    config = ReplayConfig(capacity=100, batch_size=5, length=3, memory="steps")
    replay = make_replay(config, agent.spec, agent.memory_spec, 2, device=torch.device("cpu"), seed=0)
    for t in range(20):
        marks = torch.tensor([[t], [100 + t]]).float().expand(2, 4)
        replay.add(now(agent, first=t == 0), torch.zeros(2, 2), {"expert": marks})
    batch = replay.sample()
    want = batch.index[:, :1] * 100 + batch.index[:, 1:] + torch.arange(3)
    assert torch.equal(batch.memory["expert"][..., 0], want.float())
    assert torch.equal(batch.context["expert"][:, 0], want[:, 0].float() - 1)
    replay.write_back(batch, Update(metrics={}, memory={"expert": batch.memory["expert"] + 0.5}))


SWITCHES = {
    "entropy": {"policy": replace(SMALL.policy, entropy="scaled")},
    "evaluates": {"value": replace(SMALL.value, evaluates="all")},
    "space": {"model": replace(SMALL.model, space="symexp"), "value": replace(SMALL.value, space="symexp")},
    "continuation": {"continuation": "threshold"},
    "ends": {"model": replace(SMALL.model, ends="never")},
    "seeding": {"seeding": "behaviour"},
    "behaviour": {"behaviour": "policy"},
    "evaluator": {"evaluator": replace(SEARCH, select="best")},
    "silu": {"model": replace(SMALL.model, activation="silu")},
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_alone_learns_and_acts(name):
    agent = made(**SWITCHES[name])
    before = agent.optimizer.flat.clone()
    for seed in range(3):
        metrics = agent.learn(make_batch(agent.spec, 6, 4, seed=seed, firsts=((1, 2),))).metrics
        assert all(torch.isfinite(x).all() for x in metrics.values()) and float(metrics["update/skipped"]) == 0
    assert (agent.optimizer.flat != before).float().mean() > 0.9
    for explore in (True, False):
        action, _ = agent.act(agent.initial(2), now(agent), explore=explore)
        assert action.shape == (2, 2) and action.abs().max() <= 1


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("mode", ["default", "parity"])
def test_the_nano_agent_learns_from_pixels_and_vectors(kind, mode):
    spec = make_spec(kind, vector=True)
    agent = configured("nano", mode=mode, pixels=True, discrete=kind == "discrete").build(spec)
    for seed in range(2):
        metrics = agent.learn(make_batch(spec, 3, 4, seed=seed, firsts=((1, 2),))).metrics
        assert all(torch.isfinite(x).all() for x in metrics.values())
    action, _ = agent.act(agent.initial(2), now(agent), explore=True)
    assert action.shape == (2, 3)


def test_parts_are_traced_as_one_graph_each():
    agent = taught(made())
    batch = make_batch(agent.spec, 4, 4, firsts=((1, 2),))
    for name in ("model", "policy"):
        agent.parts[name] = torch.compile(agent.parts[name], fullgraph=True, backend="eager")
    agent.learn(batch)
    agent.planners[True] = replace(agent.planners[True], iterations=1)
    act = torch.compile(agent.compute_action, fullgraph=True, backend="eager")
    step, carry = now(agent), agent.initial(2)
    with Stream(seed=1):
        want = agent.compute_action(carry.plan, step.obs, step.is_first, explore=True)[0]
    with Stream(seed=1):
        got = act(carry.plan, step.obs, step.is_first, explore=True)[0]
    torch.testing.assert_close(got, want)


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(UserError, match="PolicyMPPI plans continuous actions"):
        agent = made(replace(vectors(5, 3), action=ActionSpec(kind="discrete", size=3)))
        agent.calls = 1
        agent.act(agent.initial(1), now(agent, 1), explore=False)
    with pytest.raises(MisfitError, match="length of at least 2"):
        made().learn(make_batch(vectors(5, 2), 3, 1, firsts=()))
    with pytest.raises(MisfitError, match="give both one horizon"):
        made(evaluator=replace(SEARCH, horizon=4))
    with pytest.raises(MisfitError, match=r'take policy.form="clamped"'):
        made(policy_target="planner")
    with pytest.raises(MisfitError, match=r'take replay.memory="steps"'):
        made(**BOOTSTRAPPED).learn(make_batch(vectors(5, 2), 3, 4, firsts=()))
    for change in ({"discount": 1.5}, {"lr": math.nan}):
        with pytest.raises(ValueError, match=r"must be"):
            replace(SMALL, **change)
    with pytest.raises(ValueError, match="multiple of simplex"):
        ImplicitModelConfig(latent=12)
    with pytest.raises(ValueError, match="drawn must be from 1"):
        EnsembleQConfig(members=1)
    with pytest.raises(ValueError, match="policy_samples are part of samples"):
        CategoricalCEM(samples=8, elites=2, policy_samples=9)

