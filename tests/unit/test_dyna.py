"""Dyna and its parts: losses, critics and the reach detector against numbers worked out by hand; the agent as one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.agents.dyna import branches, losses
from worldmodel.agents.dyna.agent import BranchConfig, Dyna, DynaConfig
from worldmodel.agents.dyna.buffer import Ring, flatten, marks
from worldmodel.agents.dyna.pessimism import HaltConfig
from worldmodel.agents.dyna.policy import PolicyConfig, SquashedNormal, TemperatureConfig
from worldmodel.agents.dyna.rules.soft import SoftConfig
from worldmodel.agents.values.critics import Critics, CriticsConfig
from worldmodel.agents.values.reach import Reach, ReachConfig
from worldmodel.agents.values.reach_aware import ReachAwareValueConfig
from worldmodel.check.value import check_value_learner
from worldmodel.configs import dyna
from worldmodel.errors import MisfitError
from worldmodel.models.analytic import Point
from worldmodel.models.ensemble import EnsembleModelConfig
from worldmodel.models.plateau import KnownConfig, Plateau
from worldmodel.planning.selector import CandidateSelector
from worldmodel.protocols import Agent, Compiles, Solved, Truncates
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec, Step, Transitions

ACTION = ActionSpec(kind="continuous", size=2)
SPEC = EnvSpec(name="test", obs={"vector": ArraySpec(shape=(2,), dtype="float32")}, action=ACTION)


def small(**changes: Any) -> DynaConfig:
    settings: dict[str, Any] = {
        "model": KnownConfig(name="plateau"), "branch": BranchConfig(rows=16, every=5, keep=2, length=3),
        "policy": PolicyConfig(units=(8, 8)), "value": CriticsConfig(units=(8, 8)), "batch_size": 16, "recent": 64,
        "first": 16,
    }
    return DynaConfig(**(settings | changes))


def played(rows: int = 8, time: int = 5, seed: int = 0) -> Batch:
    """Steps of the plateau; row 0 has the end of an episode in it, row 1 a terminal one."""
    g = torch.Generator().manual_seed(seed)
    action = torch.rand(rows, time, 2, generator=g) * 2 - 1
    first, last = torch.zeros(rows, time, dtype=torch.bool), torch.zeros(rows, time, dtype=torch.bool)
    first[:2, 3], last[:2, 2] = True, True
    terminal = last.clone()
    terminal[0] = False
    return Batch(
        obs={"vector": torch.rand(rows, time, 2, generator=g)}, action=action, prev_action=action.roll(1, 1),
        reward=torch.rand(rows, time, generator=g), is_first=first, is_last=last, is_terminal=terminal,
    )


# Losses


def test_the_target_bootstraps_where_the_episode_went_on() -> None:
    given = {"reward": torch.tensor([1.0, 1.0]), "terminal": torch.tensor([0.0, 1.0]), "discount": 0.9}
    soft = losses.soft_value(value=torch.tensor([5.0, 5.0]), log_prob=torch.tensor([-1.0, -1.0]), alpha=0.5)
    # 5 + 0.5, and 1 + 0.9 * 5.5
    assert losses.critic_target(**given, next_value=soft).tolist() == pytest.approx([5.95, 1.0])


def test_only_the_edge_pays_for_its_distance() -> None:
    value = losses.reach_aware(
        value=torch.tensor([5.0, 5.0]), cost=torch.tensor([3.0, 3.0]), edge=torch.tensor([0.0, 1.0])
    )
    assert value.tolist() == [5.0, 2.0]


def test_policy_temperature_and_penalty_are_those_of_their_papers() -> None:
    log_alpha = torch.tensor(math.log(0.5), requires_grad=True)
    assert float(losses.policy_loss(value=torch.tensor(2.0), log_prob=torch.tensor(-1.0), alpha=0.5)) == -2.5
    loss = losses.temperature_loss(log_alpha=log_alpha, log_prob=torch.tensor(-1.0), target=-2.0)
    # -ln 0.5 * (-1 - 2); entropy 1 is above the -2 that is kept, so alpha falls
    assert float(loss.detach()) == pytest.approx(3 * math.log(0.5))
    loss.backward()
    assert log_alpha.grad is not None and float(log_alpha.grad) == pytest.approx(3.0)
    assert float(losses.penalised_reward(reward=torch.tensor(1.0), doubt=torch.tensor(0.5), weight=4.0)) == -1.0


def test_squashed_log_probabilities_are_those_of_the_change_of_variables() -> None:
    policy = SquashedNormal(torch.tensor([0.3]), torch.tensor([math.log(0.5)]))
    action = torch.tensor([0.6])
    raw = math.atanh(0.6)
    density = math.exp(-0.5 * ((raw - 0.3) / 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi)) / (1 - 0.36)
    assert float(policy.log_prob(action)) == pytest.approx(math.log(density), abs=1e-5)
    torch.manual_seed(0)
    sample, log_prob = policy.sample_with_log_prob()
    assert float(policy.log_prob(sample)) == pytest.approx(float(log_prob), abs=1e-4)


# Critics


@pytest.mark.parametrize(("pessimism", "expected"), [("min", 1.0), ("mean", 3.0), ("lcb", 3.0 - 2 * math.sqrt(8 / 3))])
def test_many_answers_become_one(pessimism: Any, expected: float) -> None:
    critics = CriticsConfig(members=3, units=(4,), pessimism=pessimism, beta=2.0).build(2, ACTION)
    # (1, 3, 5): mean 3, variance 8/3
    assert float(critics.combine(torch.tensor([[1.0], [3.0], [5.0]]))) == pytest.approx(expected)


def test_a_draw_of_two_is_the_lesser_of_two_members_and_its_policy_climbs_the_mean() -> None:
    torch.manual_seed(0)
    critics = CriticsConfig(members=4, units=(4,), pessimism="drawn").build(2, ACTION)
    found = {float(critics.combine(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))) for _ in range(60)}
    assert found == {1.0, 2.0, 3.0}
    x, a = torch.randn(5, 2), torch.randn(5, 2)
    assert torch.allclose(critics.value(x, a), critics.every(x, a).mean(0))


def linear_critics(weights: list[list[float]], **changes: Any) -> Critics:
    """Q_i(s, a) = w_i . a, through two hidden units each way for the sign."""
    critics = CriticsConfig(members=len(weights), units=(4,), **changes).build(2, ACTION)
    with torch.no_grad():
        first, last = critics.fast.layers
        first.weight.zero_()
        first.bias.zero_()
        last.bias.zero_()
        for at, signs in enumerate((1.0, -1.0)):
            for j in range(2):
                first.weight[:, 2 + j, 2 * j + at] = signs
                last.weight[:, 2 * j + at, 0] = signs * torch.tensor([w[j] for w in weights])
    return critics


def test_agreement_is_the_sum_of_cosines_of_the_members_gradients() -> None:
    # gradients (3, 4), (4, 3) and (0, -1): cosines 24/25, -4/5, -3/5, each pair twice, over N - 1 = 2
    critics = linear_critics([[3.0, 4.0], [4.0, 3.0], [0.0, -1.0]])
    x, action = torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])
    assert float(critics.agreement(x, action).detach()) == pytest.approx(0.96 - 0.8 - 0.6, abs=1e-5)


@pytest.mark.parametrize(("unit", "expected"), [("absolute", 2.0), ("returns", 4.5)])
def test_the_critics_loss_is_summed_over_members_and_pays_for_agreement(unit: Any, expected: float) -> None:
    critics = linear_critics([[1.0, 0.0], [1.0, 0.0]], diversity=1.0, diversity_in=unit)
    action, target = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, 4.0])
    # errors 0 and 9 of two members each; agreement 2 everywhere; the targets' variance is 2.25
    loss = critics.loss(torch.zeros(2, 2), action, target).detach()
    assert loss.tolist() == pytest.approx([expected, 18 + expected], abs=1e-4)


def test_critics_and_policies_begin_as_pytorchs_layers_or_as_edacs() -> None:
    for init in ("torch", "edac"):
        hidden, last = CriticsConfig(units=(400,), members=3, init=init).build(100, ACTION).fast.layers
        policy = PolicyConfig(units=(400,), init=init).build(100, ACTION)
        (first,) = policy.layers
        for weight, fan_in in ((hidden.weight, 102), (first.weight, 100)):  # uniform on +-1/sqrt(in)
            assert float(weight.detach().std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)
        for bias, fan_in in ((hidden.bias, 102), (first.bias, 100)):
            if init == "edac":
                assert bool((bias == 0.1).all())
            else:
                assert float(bias.detach().std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
        for layer, edac in ((last, 3e-3), (policy.out, 1e-3)):
            limit = edac if init == "edac" else 400**-0.5
            for p in layer.parameters():
                assert 0.2 * limit < float(p.detach().abs().max()) <= limit
    for version in ("edac", "ravl", "mbpo", "mopo"):
        expected = "edac" if version in ("edac", "ravl") else "torch"
        assert dyna.agent(version).value.init == dyna.agent(version).policy.init == expected


def test_a_dreamers_critic_begins_with_biases() -> None:
    hidden, last = ReachAwareValueConfig(units=(400,)).build(100).fast.layers
    assert float(hidden.bias.detach().std()) == pytest.approx(300**-0.5, rel=0.1)
    assert 0.02 * 400**-0.5 < float(last.weight.detach().abs().max()) <= 0.1 * 400**-0.5
    assert float(last.bias.detach().abs().max()) <= 0.1 * 400**-0.5


def test_only_the_rounds_that_are_kept_are_drawn_from() -> None:
    ring = Ring(10, 1, 1)
    for at in range(3):  # 0, 1, 2, 3 | 4, ... 7 | 8, ... 11: the first two are gone
        x = torch.arange(4 * at, 4 * at + 4).float().unsqueeze(-1)
        ring.add(Transitions(x=x, action=x, reward=x[:, 0], next_x=x, terminal=x[:, 0], edge=x[:, 0]))
    assert set(ring.draw(500, 4).reward.tolist()) == {8, 9, 10, 11}
    assert set(ring.draw(500, 7).reward.tolist()) == set(range(5, 12))
    assert set(ring.draw(500, 99).reward.tolist()) == set(ring.draw(500).reward.tolist()) == set(range(2, 12))


def test_mbpo_has_its_authors_schedules_and_others_do_not() -> None:
    hopper, pendulum, other = dyna.dyna("Hopper-v5"), dyna.dyna("InvertedPendulum-v5"), dyna.dyna("Hopper-v5", "sac")
    branch = hopper.agent.branch  # 20 updates a decision
    assert [branch.at(20 * decisions) for decisions in (0, 20_000, 85_000, 150_000, 10**6)] == [1, 1, 8, 15, 15]
    assert (hopper.agent.rule.temperature.target, hopper.agent.first, hopper.agent.refit_every) == (-1.0, 5000, 5000)
    assert (hopper.train.train_ratio, pendulum.train.train_ratio, other.train.train_ratio) == (5120, 2560, 2560)
    assert (pendulum.agent.rule.temperature.target, pendulum.agent.first) == (-0.05, 500)
    assert pendulum.agent.branch.at(10**9) == 1 and other.agent.rule.temperature.target is None


def test_diversity_reaches_the_weights() -> None:
    torch.manual_seed(0)
    critics = CriticsConfig(members=3, units=(8,), diversity=1.0).build(2, ACTION)
    critics.agreement(torch.randn(4, 2), torch.randn(4, 2)).mean().backward()
    grad = critics.fast.layers[0].weight.grad
    assert grad is not None and float(grad.abs().sum()) > 0


# Reach


def filled(config: ReachConfig, inputs: Tensor, times: int = 40) -> Reach:
    reach = config.build(inputs.shape[-1])
    for _ in range(times):
        reach.remember(inputs, torch.linspace(0, 10, len(inputs)), torch.tensor(True))
    return reach


def test_the_detector_knows_the_edge_from_the_inside() -> None:
    torch.manual_seed(0)
    inside = torch.rand(512, 2) * 12 - 6
    reach = filled(ReachConfig(detector="knn", memory=512), inside)
    edge = torch.cat([torch.full((50, 1), 7.0), torch.rand(50, 1) * 12 - 6], 1)
    score = reach.score(edge).mean() / reach.score(torch.rand(500, 2) * 12 - 6).mean()
    assert float(score) > 2


def test_a_bootstrap_far_away_costs_what_values_differ_by_and_one_among_the_inputs_nothing() -> None:
    torch.manual_seed(0)
    inside = torch.rand(512, 2) * 12 - 6
    reach = filled(ReachConfig(detector="knn", memory=512), inside, times=800)
    # linspace(0, 10): the 95th percentile less the 5th
    assert float(reach.cost(reach.score(torch.full((1, 2), 30.0)))) == pytest.approx(9, abs=0.1)
    assert float(reach.cost(reach.score(reach.held[:1]))) == 0
    # slope 2: a fifth beyond costs two fifths
    assert float(reach.cost(torch.tensor([1.2]))) == pytest.approx(0.4 * float(reach.spread), abs=1e-3)


@pytest.mark.parametrize("detector", ["knn", "rnd"])
def test_scores_are_float32_whatever_is_computed_around_them(detector: Any) -> None:
    torch.manual_seed(0)
    # clusters, in which bfloat16 would find another neighbour
    inputs = torch.randn(20, 256).repeat_interleave(30, 0) * 3 + 0.1 * torch.randn(600, 256)
    reach = filled(ReachConfig(detector=detector), inputs, times=60)
    plain = reach.score(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reach.score(inputs), plain)


def test_far_is_what_one_in_a_hundred_inputs_is_however_unevenly_they_lie() -> None:
    """Nine in ten in a hundredth of the room: by their mean distance the others would all be flagged."""
    torch.manual_seed(0)

    def uneven(count: int) -> Tensor:
        return torch.where(torch.rand(count, 1) < 0.9, 0.01, 1.0) * torch.randn(count, 2)

    reach = ReachConfig(detector="knn").build(2)
    for _ in range(1500):
        reach.remember(uneven(64), torch.zeros(64), torch.tensor(True))
    fresh = uneven(20_000)
    flagged = float((reach.score(fresh) > 1).float().mean())
    raw = reach._raw(fresh)
    assert 0.003 < flagged < 0.03, flagged
    assert float((raw > 3 * raw.mean()).float().mean()) > 2 * flagged, "three means would have done as well"


def test_distances_are_in_the_inputs_own_scale() -> None:
    torch.manual_seed(0)
    inside = torch.rand(512, 2)
    near, wide = torch.tensor([[1.5, 0.5]]), torch.tensor([[1.5, 5e4]])
    config = ReachConfig(detector="knn", memory=512)
    torch.manual_seed(1)
    plain = filled(config, inside).score(near)
    torch.manual_seed(1)
    stretched = filled(config, inside * torch.tensor([1.0, 1e5])).score(wide)
    assert float(plain) == pytest.approx(float(stretched), rel=0.02)


def test_a_network_that_learned_its_inputs_scores_others_higher() -> None:
    torch.manual_seed(0)
    reach = ReachConfig(detector="rnd", width=32).build(2)
    optimizer = torch.optim.Adam(reach.learner.parameters(), lr=3e-3)
    inside = torch.rand(256, 2) * 2 - 1
    for _ in range(150):
        optimizer.zero_grad()
        reach.loss(inside).mean().backward()
        optimizer.step()
        reach.remember(inside, torch.zeros(256), torch.tensor(True))
    with torch.no_grad():
        assert float(reach.score(inside * 5).mean()) > 3 * float(reach.score(inside).mean())


def test_an_unhealthy_update_is_not_remembered() -> None:
    reach = ReachConfig(detector="knn", memory=64, remembered=8).build(2)
    before = copy.deepcopy(reach.state_dict())
    reach.remember(torch.full((8, 2), float("nan")), torch.full((8,), float("nan")), torch.tensor(False))
    assert all(torch.equal(x, before[name]) for name, x in reach.state_dict().items())


@pytest.mark.parametrize("detector", ["knn", "rnd"])
def test_the_state_value_keeps_the_promises_of_a_value_learner(detector: Any) -> None:
    config = ReachAwareValueConfig(members=3, units=(16,), reach=ReachConfig(detector=detector, memory=64))
    report = check_value_learner(config)
    assert report.passed, report
    assert isinstance(config.build(4), Truncates)


def test_only_the_truncated_bootstrap_is_lowered() -> None:
    torch.manual_seed(0)
    value = ReachAwareValueConfig(members=1, units=(16,), reach=ReachConfig(memory=64)).build(2)
    for _ in range(400):
        value.loss(torch.rand(64, 2), torch.linspace(0, 10, 64))
        value.track(torch.tensor(True))
    far, known = torch.full((1, 2), 20.0), value.reach.held
    # by about what linspace(0, 10) spreads over
    assert 8 < float((value.target(far) - value.truncated(far)).detach()) < 10
    assert torch.equal(value.truncated(known), value.target(known))


# Data


def test_sequences_become_transitions_and_ends_are_told_apart() -> None:
    batch = played(rows=2)
    data, real = flatten(batch, batch.obs["vector"])
    assert real.tolist() == [True, True, False, True] * 2
    assert data.edge.tolist() == [0, 1, 0, 0] + [0] * 4 and data.terminal.tolist() == [0] * 4 + [0, 1, 0, 0]
    # index t leads from step t to t + 1, whose reward it has, by the action chosen at t
    assert torch.equal(data.reward[:4], batch.reward[0, 1:]) and torch.equal(data.action[:4], batch.action[0, :-1])
    assert torch.equal(data.next_x[:3], data.x[1:4])


def test_no_transition_leads_from_one_episode_into_another() -> None:
    agent, batch = small().build(SPEC), played()
    agent.absorb(batch)
    held = agent.seen.at(slice(0, len(agent.seen)))
    across = batch.obs["vector"][:2, 2]
    assert not bool((held.x.unsqueeze(0) == across.unsqueeze(1)).all(-1).any())


def test_a_transition_is_held_out_or_not_wherever_it_is_drawn() -> None:
    index = torch.tensor([[3, 100], [3, 102]])
    mark = marks(index, 5, 0.5, 8).view(2, 4)
    assert mark[0, 2:].tolist() == mark[1, :2].tolist()
    many = marks(torch.tensor([[0, 0]]), 20_001, 0.2, 20_000)
    assert float(many.mean()) == pytest.approx(0.2, abs=0.01)


def test_the_ring_keeps_the_last_ones() -> None:
    ring = Ring(5, 2, 1)
    for at in range(4):
        row = torch.full((2,), float(at))
        ring.add(Transitions(
            x=row.unsqueeze(1).expand(2, 2), action=row.unsqueeze(1), reward=row, next_x=row.unsqueeze(1).expand(2, 2),
            terminal=row, edge=row,
        ))
    assert len(ring) == 5 and sorted(ring.at(slice(0, 5)).reward.tolist()) == [1.0, 2.0, 2.0, 3.0, 3.0]


# Dreams


def test_branches_end_at_terminals_and_only_cut_ones_are_edges() -> None:
    class Falls(Plateau):
        def predict(self, previous: Point, action: Tensor, state: Point) -> Any:
            said = super().predict(previous, action, state)
            return replace(said, continues=(self.rho(state.x) < 1.0).float())

    agent = small(branch=BranchConfig(rows=32, every=5, keep=2, length=4)).build(SPEC)
    agent.learner = replace(agent.learner, model=Falls())
    agent.absorb(played())
    said = agent.dream(4)
    data = agent.dreams.at(slice(0, len(agent.dreams)))
    assert 32 < float(said["branch/transitions"]) < 4 * 32
    fallen = Plateau.rho(data.next_x) >= 1.0
    assert torch.equal(data.terminal.bool(), fallen) and not bool((data.edge.bool() & fallen).any())
    # nothing goes on from where it fell
    assert not bool((Plateau.rho(data.x[32:]) >= 1.0).any())


def test_lengths_grow_linearly() -> None:
    branch = BranchConfig(length=1, grown=15, grows=(20, 100))
    assert [branch.at(n) for n in (0, 20, 60, 100, 500)] == [1, 1, 8, 15, 15]


def test_the_penalty_needs_a_model_that_doubts() -> None:
    for doubt in ({"penalty": 1.0}, {"halt": HaltConfig(coefficient=3.0)}):
        with pytest.raises(MisfitError, match=r"needs a model that is Uncertain, .* and got no model"):
            small(model=None, **doubt).build(SPEC)


def test_true_dynamics_leave_nothing_to_penalise_but_an_ensemble_does() -> None:
    net = EnsembleModelConfig(units=(8,), decays=(), max_rounds=1)
    agent = small(model=net, penalty=2.0).build(SPEC)
    torch.manual_seed(0)
    agent.absorb(played())
    agent.model.noise = "mean"
    plain = small(model=net).build(SPEC)
    for one in (agent, plain):
        one.seen.load_state_dict(agent.seen.state_dict())
        one.seen.restore()
        torch.manual_seed(1)
        one.dream(1)
    data = agent.dreams.at(slice(0, 16))
    with torch.no_grad():
        doubt = agent.model.disagreement(agent._placed(data.x), data.action)
    assert torch.allclose(data.reward, plain.dreams.at(slice(0, 16)).reward - 2.0 * doubt, atol=1e-5)


@pytest.mark.parametrize(("patch", "share"), [("edge", 0.25), ("random", 0.25)])
def test_the_patch_puts_the_optimum_where_it_says(patch: Any, share: float) -> None:
    agent = small(patch=patch, discount=0.95).build(SPEC)
    x = torch.tensor([[0.0, 0.0], [3.0, 1.0], [3.5, 0.0], [2.0, 0.0]])
    value, found = agent._patched(x, torch.zeros(4))
    assert float(found) == share
    # rho 3.5 exceeds the 3 steps of a branch; on the plateau the optimum is 1 / (1 - 0.95)
    if patch == "edge":
        assert value.tolist() == pytest.approx([0.0, 0.0, 20.0, 0.0])
    assert int((value > 0).sum()) == 1


# The plane


def test_the_optimum_of_the_plateau_is_what_moving_outwards_earns() -> None:
    model = Plateau()
    assert isinstance(model, Solved)
    x = torch.tensor([[0.0, 0.0], [2.5, -1.0], [5.0, 0.0], [8.5, 0.0]])
    # by hand, discount 0.5: 1/3 + (2/3)/2 + 1/2; 1 at once; 1; -1 until within 7, after two steps
    assert model.optimum(x, 0.5).tolist() == pytest.approx([1 / 3 + 1 / 3 + 0.5, 2.0, 2.0, -1 + 0.5 * 2], abs=1e-5)
    arrived = model.step(Point(x=x), torch.tensor([3.0, 0.0]).expand(4, 2))
    assert arrived.x[:, 0].tolist() == [1.0, 3.5, 6.0, 9.5]
    assert model.predict(Point(x=x), x, arrived).reward.tolist() == pytest.approx([1 / 3, 1.0, 1.0, -1.0])
    assert Plateau(slope=True).predict(Point(x=x), x, arrived).reward.tolist() == pytest.approx([1 / 3, 1.0, 1.0, -1.5])


# Selection (COPlanner)

UNSURE = EnsembleModelConfig(units=(8,), decays=(), max_rounds=1, uncertainty="average_std")


def seen(rows: int = 64) -> Step:
    no = torch.zeros(rows, dtype=torch.bool)
    x = torch.rand(rows, 2, generator=torch.Generator().manual_seed(5))
    return Step(obs={"vector": x}, reward=torch.zeros(rows), is_first=no, is_last=no, is_terminal=no)


def selecting(which: CandidateSelector | None, updates: int = 3) -> tuple[Dyna, dict[str, Tensor]]:
    agent, metrics = small(model=UNSURE, acting=which, dreaming=which).build(SPEC), {}
    for at in range(updates):
        batch = played(seed=at)
        metrics |= agent.learn(replace(batch, is_terminal=torch.zeros_like(batch.is_terminal))).metrics
    return agent, metrics


def test_one_candidate_without_a_rate_is_the_policy_bit_for_bit_in_acting_and_in_learning() -> None:
    one = CandidateSelector(candidates=1, rate=0.0)
    (plain, told), (other, said) = (
        selecting(which) for which in (None, one)
    )
    assert told.keys() == said.keys() and all(torch.equal(told[name], said[name]) for name in told)
    mine, theirs = plain.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for explore in (True, False):
        (first, carry), (second, again) = (
            agent.act(agent.initial(64, seed=3), seen(), explore=explore) for agent in (plain, other)
        )
        assert torch.equal(first, second) and torch.equal(carry.rng, again.rng)


def test_dreams_stay_where_the_model_is_sure_and_acting_goes_where_it_is_not() -> None:
    eager = CandidateSelector(candidates=16, horizon=1, rate=1e4)
    careful = replace(eager, mode="conservative")
    doubts: dict[str, list[float]] = {"acting": [], "dreaming": []}
    for which in (careful, None, eager):
        agent, said = selecting(which, updates=1)
        assert ("select/doubt_gain" in said) == (which is not None)
        action, _ = agent.act(agent.initial(64, seed=3), seen(), explore=True)
        held = agent.dreams.everything()
        for name, x, taken in (("acting", seen().obs["vector"], action), ("dreaming", held.x, held.action)):
            doubts[name].append(agent.model.disagreement(agent._placed(x), taken).mean().item())
        # evaluation by mode is the plain policy, whatever explores
        action, _ = agent.act(agent.initial(64, seed=3), seen(), explore=False)
        assert torch.equal(action, agent.actor(seen().obs["vector"]).mode())
    assert all(low < middle < high for low, middle, high in doubts.values())


def test_many_states_are_selected_in_parts_and_stay_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "AT_ONCE", 3)
    x = torch.rand(8, 2)
    taken, about = branches.chosen(
        CandidateSelector(candidates=2, horizon=1, rate=0.0), Plateau(), lambda x: x, lambda x: x[:, 0], Point(x=x)
    )
    assert torch.equal(taken, x) and about["score_gain"].shape == (8,)


def test_acting_with_selection_is_traced_without_a_break_and_is_the_same() -> None:
    agent, _ = selecting(CandidateSelector(candidates=2, horizon=2), updates=1)
    first, _ = agent.act(agent.initial(64, seed=3), seen(), explore=True)
    agent.parts["act"] = torch.compile(agent.parts["act"], fullgraph=True, dynamic=False, backend="eager")
    second, _ = agent.act(agent.initial(64, seed=3), seen(), explore=True)
    torch.compiler.reset()
    assert torch.allclose(first, second, atol=1e-6)


def test_selection_asks_for_a_model_and_a_rate_for_one_that_doubts() -> None:
    with pytest.raises(ValueError, match="choose by rollouts of a model, and model is None"):
        small(model=None, acting=CandidateSelector())
    bare = EnsembleModelConfig(units=(8,))
    bare_agent = small(model=bare, dreaming=CandidateSelector(rate=0.0))
    assert bare_agent.build(SPEC).config.dreaming.doubts is False


# The agent


def learned(config: DynaConfig, updates: int = 6, seed: int = 0) -> tuple[Dyna, dict[str, Tensor]]:
    agent, metrics = config.build(SPEC, seed=seed), {}
    for at in range(updates):
        metrics = agent.learn(played(seed=at)).metrics
    return agent, metrics


PARTS = {
    "mbpo": small(),
    "ensemble": small(model=EnsembleModelConfig(units=(8,), decays=(), max_rounds=1), refit_every=3, penalty=1.0),
    "sac": small(model=None),
    "redq": small(model=None, value=CriticsConfig(members=4, units=(8,), pessimism="drawn")),
    "edac": small(
        model=None, value=CriticsConfig(members=3, units=(8,), diversity=1.0, init="edac"),
        policy=PolicyConfig(units=(8, 8), init="edac"),
    ),
    "ravl": small(value=CriticsConfig(members=5, units=(8,), diversity=1.0, init="edac")),
    "lcb": small(value=CriticsConfig(members=5, units=(8,), pessimism="lcb", norm="layer")),
    "reach": small(value=CriticsConfig(units=(8,), norm="layer"), reach=ReachConfig(memory=64)),
    "rnd": small(reach=ReachConfig(detector="rnd", width=8)),
    "std": small(reach=ReachConfig(detector="ensemble")),
    "plain": small(
        rule=SoftConfig(backup="plain", temperature=TemperatureConfig(initial=0.2, is_learned=False))
    ),
    "coplanner": small(
        model=EnsembleModelConfig(units=(8,), decays=(), max_rounds=1, uncertainty="average_std"),
        acting=CandidateSelector(candidates=3, horizon=2, bootstrap="last"),
        dreaming=CandidateSelector(candidates=3, horizon=2, mode="conservative", rate=2.0),
    ),
    "growing": small(branch=BranchConfig(rows=16, every=2, keep=2, length=1, grown=3, grows=(0, 4))),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_composition_learns_something_finite(name: str) -> None:
    config = PARTS[name]
    batch = played()
    agent = config.build(SPEC)
    never = replace(batch, is_terminal=torch.zeros_like(batch.is_terminal))
    before = [p.detach().clone() for p in agent.actor.parameters()]
    for at in range(6):
        metrics = agent.learn(replace(never, obs=played(seed=at).obs)).metrics
    assert all(bool(x.isfinite()) for x in metrics.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.actor.parameters()))
    assert isinstance(agent, Compiles)
    agent_: Agent[Any] = agent
    step = Step(
        obs={"vector": torch.zeros(3, 2)}, reward=torch.zeros(3), is_first=torch.ones(3, dtype=torch.bool),
        is_last=torch.zeros(3, dtype=torch.bool), is_terminal=torch.zeros(3, dtype=torch.bool),
    )
    action, _ = agent_.act(agent_.initial(3, seed=1), step, explore=True)
    assert action.shape == (3, 2) and bool((action.abs() <= 1).all())


def test_the_policy_loss_teaches_no_critic() -> None:
    agent, _ = learned(small())
    agent.value.requires_grad_(False)
    total, _, _ = agent.losses(agent.draw())
    grads = torch.autograd.grad(total, [*agent.actor.parameters()], allow_unused=True)
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    judged = [*agent._judge.parameters()]
    assert not any(p.requires_grad for p in judged)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(judged, agent.value.parameters()))


def test_nothing_is_learned_before_there_is_enough() -> None:
    agent = small(first=60).build(SPEC)
    assert agent.learn(played()).metrics == {} and agent.updates == 0
    assert agent.learn(played()).metrics != {} and agent.updates == 1


def test_it_goes_on_bit_for_bit() -> None:
    config = PARTS["reach"]
    agent, _ = learned(config)
    twin = config.build(SPEC, seed=9)
    twin.load_state_dict(tree.map(lambda x: x.clone(), dict(agent.state_dict())))
    for at in range(6):
        batch = played(seed=20 + at)
        one, other = agent.learn(batch).metrics, twin.learn(batch).metrics
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_batch_that_is_not_finite_changes_no_weight() -> None:
    agent, _ = learned(small(model=None))
    before = copy.deepcopy(agent.modules.state_dict())
    agent.seen.reward.fill_(float("nan"))
    update = agent.learn_step(agent.draw())
    assert float(update.metrics["update/bad_streak"]) == 1
    assert all(torch.equal(x, before[name]) for name, x in agent.modules.state_dict().items())


def test_choices_are_refused() -> None:
    spec = replace(SPEC, action=ActionSpec(kind="discrete", size=2))
    with pytest.raises(MisfitError, match="needs continuous actions"):
        small().build(spec)
