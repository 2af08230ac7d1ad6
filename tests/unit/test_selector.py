"""Candidate selection: what it picks, that it is the policy where nothing is to choose, and where dreams meet it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.models import make_agent, make_batch, make_spec
from tests.unit.test_dreamer import act_steps
from worldmodel import tree
from worldmodel.agents.dreamer.losses import selection_kl
from worldmodel.check.planner import Drift, Place, check_planner
from worldmodel.distributions import BoundedNormal, Categorical
from worldmodel.errors import UserError
from worldmodel.models.disagreement import DisagreementConfig
from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.planning.selector import CandidateSelector, DreamSelector
from worldmodel.rng import Stream
from worldmodel.rollout import imagine
from worldmodel.types import ActionSpec, Prediction

SMALL = DisagreementConfig(members=3, units=16, layers=1)
SIZE = 3


class Line(Drift):
    """x' = x + a; arriving at x pays x_0, and the model is unsure by |a_1|."""

    def step(self, state: Place, action: Tensor) -> Place:
        return Place(x=state.x + action)

    def predict(self, previous: Place, action: Tensor, state: Place) -> Prediction:
        reward = state.x[..., 0]
        return Prediction(reward=reward, continues=torch.full_like(reward, 0.5))

    def disagreement(self, state: Place, action: Tensor) -> Tensor:
        return action[..., 1].abs()


class Sure:
    """A model with no disagreement."""

    feature_dim = SIZE
    step, predict, features = Line.step, Line.predict, Line.features


def sample(features: Tensor) -> Tensor:
    return torch.randn_like(features)


def place(rows: int = 2) -> Place:
    return Place(x=torch.zeros(rows, SIZE))


def rehearsed(selector: CandidateSelector, model: Any = None, **more: Any) -> Any:
    with Stream(seed=3):
        return selector.rehearse(model or Line(), sample, place(), **more)


def selected(selector: CandidateSelector) -> Tensor:
    with Stream(seed=3):
        return selector.select(Line(), sample, place())[0]


def test_the_score_is_that_of_a_loop_over_candidates_and_steps() -> None:
    selector = CandidateSelector(candidates=3, horizon=4, rate=0.7, reward_discount=0.9, doubt_discount=0.8)
    got = rehearsed(selector)
    for b in range(2):
        for k in range(3):
            x, total = torch.zeros(SIZE), 0.0
            for t in range(4):
                action = got.action[b, k, t]
                x = x + action
                total += 0.9**t * float(x[0]) + 0.7 * 0.8**t * abs(float(action[1]))
            assert math.isclose(float(got.score[b, k]), total, rel_tol=1e-5, abs_tol=1e-6)


def test_predicted_ends_cut_off_and_the_last_value_counts_where_they_are_asked_for() -> None:
    plain = {"candidates": 2, "horizon": 2, "rate": 0.0, "reward_discount": 0.5}
    value = {"value": lambda features: 10 * features[..., 0]}
    got = rehearsed(CandidateSelector(**plain, continuation="product", bootstrap="last"), **value)
    x1 = got.action[:, :, 0, 0]
    x2 = x1 + got.action[:, :, 1, 0]
    torch.testing.assert_close(got.score, x1 + 0.25 * x2 + 0.0625 * 10 * x2)
    torch.testing.assert_close(rehearsed(CandidateSelector(**plain)).score, x1 + 0.5 * x2)


def test_a_large_rate_picks_the_least_or_the_most_known_and_the_mode_gives_the_sign() -> None:
    chosen = {}
    for mode in ("conservative", "optimistic"):
        selector = CandidateSelector(candidates=16, horizon=1, mode=mode, rate=1e6)  # type: ignore[arg-type]
        played, chosen[mode] = rehearsed(selector), selected(selector)
        unsure = played.first[..., 1].abs()
        extreme = unsure.min(1).values if mode == "conservative" else unsure.max(1).values
        torch.testing.assert_close(chosen[mode][:, 1].abs(), extreme)
    other = {m: rehearsed(CandidateSelector(candidates=16, mode=m, rate=2.0)) for m in chosen}  # type: ignore[arg-type]
    torch.testing.assert_close(other["conservative"].doubt, -other["optimistic"].doubt)
    torch.testing.assert_close(other["conservative"].reward, other["optimistic"].reward)


def test_without_a_rate_the_best_rewards_win_and_no_disagreement_is_needed() -> None:
    selector = CandidateSelector(candidates=8, horizon=1, rate=0.0)
    got = rehearsed(selector, Sure())
    with Stream(seed=3):
        action, about = selector.select(Sure(), sample, place())
    torch.testing.assert_close(action[:, 0], got.first[..., 0].max(1).values)
    assert (about["reward_gain"] > 0).all() and not about["doubt_share"].any()
    with pytest.raises(UserError, match="no disagreement"):
        rehearsed(CandidateSelector(), Sure())


def test_the_chosen_sample_keeps_its_gradient() -> None:
    scale = torch.ones(SIZE, requires_grad=True)
    with Stream(seed=3):
        action, _ = CandidateSelector().select(Line(), lambda f: scale * torch.randn_like(f), place())
    action.sum().backward()
    torch.testing.assert_close(scale.grad, action.detach().sum(0))


def test_a_rollout_that_is_not_finite_is_never_chosen() -> None:
    class Broken(Line):
        def predict(self, previous: Place, action: Tensor, state: Place) -> Prediction:
            good = super().predict(previous, action, state)
            return dataclasses.replace(good, reward=torch.where(good.reward > 0, torch.nan, good.reward))

    with Stream(seed=3):
        action, _ = CandidateSelector(candidates=16, horizon=1, rate=0.0).select(Broken(), sample, place())
    assert (action[:, 0] <= 0).all()


def test_it_is_a_planner_of_both_kinds_of_actions() -> None:
    assert check_planner(CandidateSelector()).passed
    with pytest.raises(UserError, match="samples of a policy"):
        objective = ExpectedReturn(model=Line(), action=ActionSpec(kind="continuous", size=SIZE))  # type: ignore[arg-type]
        selector = CandidateSelector()
        selector(objective, place(), selector.initial(2, SIZE), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(("kind", "change", "said"), [
    (CandidateSelector, {"candidates": 0}, "candidates must be at least 1"),
    (CandidateSelector, {"rate": -1.0}, "the mode gives the sign"),
    (CandidateSelector, {"doubt_discount": 1.5}, "doubt_discount must be in"),
    (DreamSelector, {"every": 0}, "every must be at least 1"),
    (DreamSelector, {"fraction": 0.0}, "fraction must be in"),
    (DreamSelector, {"spared": -1}, "spared must be at least 0"),
])
def test_numbers_that_mean_nothing_are_refused(kind: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**change)


# Dreams


def test_dreams_spare_the_first_action_and_select_each_nth_of_the_others() -> None:
    asked: list[int] = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Loud(CandidateSelector):
        def select(self, model: Any, act: Any, state: Any, *, value: Any = None) -> Any:
            asked.append(len(state.x))
            return torch.full((len(state.x), SIZE), 9.0), {}

    dream, _ = DreamSelector(selector=Loud(), every=2).imagine(Line(), sample, place(4), 6)
    assert (dream.action == 9.0).all((0, 2)).tolist() == [False, True, False, True, False, True] and asked == [4] * 3
    asked.clear()
    dream, _ = DreamSelector(selector=Loud(), fraction=0.5, spared=0).imagine(Line(), sample, place(4), 3)
    rows = (dream.action == 9.0).all(2)
    assert asked == [2] * 3 and rows.all(1).sum() == 2 and rows.any(1).sum() == 2, "the same rows in every step"


def test_the_price_of_a_dream_is_its_own_steps_and_those_of_candidates() -> None:
    selector = CandidateSelector(candidates=4, horizon=4, mode="conservative", rate=0.5)
    assert DreamSelector(selector=selector).evaluations(15) == 15 + 14 * 16
    assert DreamSelector(selector=selector, every=5, fraction=0.5).evaluations(15) == 15 + 3 * 8
    assert CandidateSelector(candidates=1).evaluations == 0


# Dreamer


def pair(**changes: Any) -> tuple[Any, Any]:
    """A plain agent that carries an ensemble, and one that selects."""
    spec = make_spec(changes.pop("kind", "continuous"))
    plain = make_agent(spec, model={"disagreement": SMALL})
    return plain, make_agent(spec, model={"disagreement": SMALL}, **changes)


ONE = CandidateSelector(candidates=1, rate=0.0)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_one_candidate_is_the_policy_bit_for_bit_in_acting_and_in_learning(kind: str) -> None:
    plain, other = pair(kind=kind, acting=ONE, dreaming=DreamSelector(selector=ONE, spared=0))
    for seed in range(2):
        batch = make_batch(plain.spec, seed=seed)
        one, two = plain.learn(batch).metrics, other.learn(batch).metrics
        assert {name for name in one if not torch.equal(one[name], two[name])} == set()
    first, carry = act_steps(plain, plain.initial(2, seed=7))
    second, again = act_steps(other, other.initial(2, seed=7))
    assert torch.equal(first, second) and torch.equal(carry.rng, again.rng)


def test_evaluation_by_mode_is_the_plain_policy_and_exploring_is_not() -> None:
    plain, other = pair(acting=CandidateSelector(candidates=8, rate=100.0))
    for explore in (False, True):
        first, _ = act_steps(plain, plain.initial(2, seed=7), explore=explore)
        second, _ = act_steps(other, other.initial(2, seed=7), explore=explore)
        assert torch.equal(first, second) != explore


def test_the_conservative_dream_stays_where_the_model_knows() -> None:
    plain, careful = pair(
        dreaming=DreamSelector(selector=CandidateSelector(candidates=16, mode="conservative", rate=1e3))
    )
    bold = make_agent(
        plain.spec, model={"disagreement": SMALL},
        dreaming=DreamSelector(selector=CandidateSelector(candidates=16, rate=1e3)),
    )
    unsure = {}
    for name, agent in (("careful", careful), ("plain", plain), ("bold", bold)):
        starts = agent.model.initial(64)
        with Stream(seed=1), torch.no_grad():
            dream = agent._dream(starts)[0]
            before = tree.index(dream.states, (slice(None), slice(1, -1)))
            unsure[name] = float(agent.model.disagreement(before, dream.action[:, 1:]).mean())
    assert unsure["careful"] < unsure["plain"] < unsure["bold"]


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_an_agent_that_selects_and_is_curious_learns(gradient: Any) -> None:
    _, agent = pair(acting=CandidateSelector(), dreaming=DreamSelector(every=2, fraction=0.5), intrinsic=0.5)
    config = dataclasses.replace(agent.config, actor=dataclasses.replace(agent.config.actor, gradient=gradient))
    agent = config.build(agent.spec)
    for seed in range(2):
        metrics = agent.learn(make_batch(agent.spec, seed=seed)).metrics
    assert all(torch.isfinite(x).all() for x in metrics.values()) and float(metrics["update/skipped"]) == 0
    assert {"select/kl", "select/doubt_share", "select/doubt_gain", "imagination/disagreement"} <= metrics.keys()
    # H = 4: actions 1 and 3 of half the dreams are selected among 4 rollouts of 4 steps
    assert float(metrics["select/model_steps"]) == 4 + 2 * 0.5 * 16


def test_every_part_is_one_graph() -> None:
    brief = CandidateSelector(candidates=2, horizon=2)
    _, agent = pair(
        acting=brief, intrinsic=1.0, imagination=2,
        dreaming=DreamSelector(selector=dataclasses.replace(brief, mode="conservative"), fraction=0.5),
    )
    for name in ("losses", "act"):
        agent.parts[name] = torch.compile(agent.parts[name], fullgraph=True, dynamic=False, backend="eager")
    agent.learn(make_batch(agent.spec, 2, 3, firsts=((1, 1),)))
    act_steps(agent, agent.initial(2), steps=1)
    torch.compiler.reset()


def test_a_weight_on_uncertainty_asks_for_a_model_that_has_it() -> None:
    for change in ({"acting": CandidateSelector()}, {"dreaming": DreamSelector()}, {"intrinsic": 1.0}):
        with pytest.raises(UserError, match="no disagreement"):
            make_agent(**change)
    make_agent(acting=CandidateSelector(rate=0.0))


def test_the_behaviour_learns_from_the_weighted_sum_of_both_rewards() -> None:
    plain, curious = pair(extrinsic=0.25, intrinsic=2.0)
    reward, unsure = torch.rand(2, 5), torch.rand(2, 5)
    torch.testing.assert_close(curious._mix(reward, unsure), 0.25 * reward + 2 * unsure)
    assert plain._mix(reward, unsure) is reward
    batch = make_batch(plain.spec)
    with Stream(seed=0):
        states = curious.model.observe(curious.model.initial(3), batch.obs, batch.prev_action, batch.is_first)
        got = curious._doubt_on_replay(batch, states)
    at = tree.index(states, (1, slice(2, 3)))
    torch.testing.assert_close(got[1, 3:4], curious.model.disagreement(at, batch.prev_action[1, 3:4]))
    assert not got[:, 0].any()


# How far selection is from the policy


def test_the_kl_bound_of_the_policys_own_samples_is_zero_and_of_the_best_of_k_below_its_limit() -> None:
    policy = BoundedNormal(torch.zeros(40_000, 1, 1), torch.zeros(40_000, 1, 1))
    draws = policy.mean + policy.std * torch.randn(40_000, 1, 4, generator=torch.Generator().manual_seed(0))
    every = slice(0, None)
    assert float(selection_kl(policy, draws[..., :1], every)) < 1e-3
    best = float(selection_kl(policy, draws.max(-1, keepdim=True).values, every))
    # moments of the largest of 4 standard normals: mean 1.0294, variance 0.4917
    assert math.isclose(best, 0.5 * (0.4917 + 1.0294**2 - 1 - math.log(0.4917)), rel_tol=0.03)
    assert best < math.log(4) - 3 / 4


def test_the_kl_bound_of_choices_is_that_of_frequencies() -> None:
    policy = Categorical(torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(10, 2, 3))
    action = F.one_hot(torch.tensor([0] * 8 + [1] * 2), 3).float().unsqueeze(1).expand(10, 2, 3)
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.3)
    assert math.isclose(float(selection_kl(policy, action, slice(1, None))), expected, rel_tol=1e-5)


def test_unroll_with_nothing_selected_is_imagine() -> None:
    with Stream(seed=5):
        one = imagine(Line(), sample, place(), 3)
    with Stream(seed=5):
        two, told = DreamSelector(spared=3).imagine(Line(), sample, place(), 3)
    assert torch.equal(one.action, two.action) and torch.equal(one.states.x, two.states.x) and told == {}
