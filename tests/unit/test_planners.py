"""Planners of continuous actions against closed forms, slow loops and hand-worked numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo

from tests.unit.models import make_agent, make_spec
from worldmodel import tree
from worldmodel.distributions import BoundedNormal
from worldmodel.errors import UserError
from worldmodel.models.analytic import LinearQuadratic, Pendulum, Point, double_integrator
from worldmodel.planning import noise
from worldmodel.planning.cem import CEM
from worldmodel.planning.gradcem import GradCEM
from worldmodel.planning.gradient import GradientPlanner
from worldmodel.planning.icem import ICEM
from worldmodel.planning.mppi import MPPI
from worldmodel.planning.objectives import WORST, ExpectedReturn, policy_value, q_spread
from worldmodel.planning.policy_mppi import PolicyMPPI, elite_weights
from worldmodel.planning.predictive import PredictiveSampling
from worldmodel.planning.shooting import RandomShooting
from worldmodel.rng import Stream
from worldmodel.types import ActionSpec, Plan, Prediction, Trajectory

PUSH = ActionSpec(kind="continuous", size=1)

SMALL: dict[str, Any] = {
    "shooting": RandomShooting(horizon=4, samples=16),
    "predictive": PredictiveSampling(horizon=4, samples=16, std=0.6),
    "cem": CEM(horizon=4, samples=16, elites=4, iterations=2),
    "icem": ICEM(horizon=4, samples=16, elites=4, iterations=2),
    "mppi": MPPI(horizon=4, samples=16, iterations=2),
    "policy_mppi": PolicyMPPI(horizon=4, samples=16, policy_samples=2, elites=6, iterations=2, exploration=1.0),
    "adam": GradientPlanner(horizon=4, restarts=4, policy_restarts=1, steps=3),
    "sgd": GradientPlanner(horizon=4, restarts=4, steps=3, optimiser="sgd"),
    "gradcem": GradCEM(horizon=4, samples=8, elites=3, iterations=2),
}


def aim(features: Tensor) -> BoundedNormal:
    """A policy that pushes towards the origin, and is unsure."""
    return BoundedNormal(-features.sum(-1, keepdim=True), torch.zeros_like(features[..., :1]))


def mass(**changes: Any) -> ExpectedReturn[Point]:
    model = double_integrator()
    return ExpectedReturn(**({"model": model, "action": PUSH, "discount": 1.0, "policy": aim} | changes))


def at(*rows: list[float]) -> Point:
    return Point(x=torch.tensor(rows))


def firsts(*marks: bool) -> Tensor:
    return torch.tensor(marks)


def decide(planner: Any, objective: Any, state: Any, plan: Plan, first: Tensor, *, seed: int = 0) -> Any:
    with Stream(seed=seed), torch.no_grad():
        return planner(objective, state, plan, first)


@pytest.mark.parametrize("planner", [
    CEM(horizon=10, samples=512, elites=50, iterations=10),
    ICEM(horizon=10, samples=512, elites=50, iterations=10),
    MPPI(horizon=10, samples=512, iterations=10, std=0.25, temperature=0.02),
    PolicyMPPI(horizon=10, samples=512, policy_samples=0, elites=64, iterations=10, temperature=20.0, select="mean"),
    GradientPlanner(horizon=10, restarts=4, steps=60, rate=0.05), GradCEM(horizon=10, iterations=10),
], ids=lambda p: type(p).__name__)
def test_a_plan_costs_at_most_5_percent_more_than_the_riccati_solution(planner: Any) -> None:
    objective = mass(bootstrap="last", value=double_integrator().value())
    state = at([0.5, 0.0], [-0.3, 0.4])
    best = double_integrator().value()(state.x)
    plan, told = decide(planner, objective, state, planner.initial(2, 1), firsts(True, True))
    sequence = plan.mean.unsqueeze(1)
    assert (objective.score(state, sequence)[:, 0] >= 1.05 * best).all() and (told["value"] >= 1.05 * best).all()
    assert (told["value"] <= best + 1e-4).all(), "nothing is better than the optimum"


def test_the_riccati_solution_satisfies_bellmans_equation() -> None:
    model = double_integrator()
    p, gain = model.optimum(discount=0.9)
    x = torch.tensor([[0.7, -0.2]])
    action = -x @ gain.mT
    after = model.step(Point(x=x), action)
    reward = model.predict(Point(x=x), action, after).reward
    value = model.value(0.9)
    torch.testing.assert_close(value(x), reward + 0.9 * value(after.x))
    torch.testing.assert_close(value(x)[0], -(x[0] @ p @ x[0]))


def test_icem_finds_no_worse_plans_than_cem_at_100_samples() -> None:
    a = torch.eye(4) + 0.1 * torch.diag(torch.ones(3), 1)
    model = LinearQuadratic(a, torch.eye(4)[:, 2:] * 0.1, torch.eye(4), 0.01 * torch.eye(2))
    objective = ExpectedReturn(model=model, action=ActionSpec(kind="continuous", size=2), discount=1.0)
    state = Point(x=torch.randn(32, 4, generator=torch.Generator().manual_seed(0)))
    values = {}
    for planner in (CEM(horizon=20, samples=34, elites=8, iterations=3), ICEM(horizon=20, elites=8, iterations=3)):
        _, told = decide(planner, objective, state, planner.initial(32, 2), torch.ones(32, dtype=torch.bool))
        values[type(planner).__name__] = told["value"].mean(), told["evaluations"]
    assert values["ICEM"][0] >= values["CEM"][0]
    assert values["ICEM"][1] <= 1.1 * values["CEM"][1]


def test_elites_are_weighted_as_in_td_mpc2() -> None:
    weight = elite_weights(torch.tensor([[1.0, 0.0, -1.0]]), 0.5)
    torch.testing.assert_close(weight, torch.tensor([[0.5065, 0.3072, 0.1863]]), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_actions_never_leave_the_bounds_and_an_optimum_on_the_bound_is_reached(name: str) -> None:
    planner = SMALL[name]
    state = at([50.0, 50.0], [-50.0, -50.0])
    plan = planner.initial(2, 1)
    for step in range(12):
        plan, told = decide(planner, mass(), state, plan, firsts(step == 0, step == 0), seed=step)
        for x in (plan.action, plan.mean):
            assert bool((x.abs() <= 1).all())
        assert all(bool(x.isfinite().all()) for x in told.values())
    assert plan.action[0] < -0.5 < 0.5 < plan.action[1]


@pytest.mark.parametrize("name", SMALL)
def test_first_forgets_the_plan_of_that_row_alone(name: str) -> None:
    # so near, a few random candidates find nothing better than no plan; so far, a gradient reaches the bound at once
    start = [5.0, 1.0] if name == "predictive" else [0.5, 0.1]
    planner, state = SMALL[name], at(start, start)
    used, _ = decide(planner, mass(), state, planner.initial(2, 1), firsts(True, True))
    odd = tree.map(lambda x: torch.full_like(x, torch.nan), used)
    fresh, _ = decide(planner, mass(), state, planner.initial(2, 1), firsts(True, True), seed=1)
    going, _ = decide(planner, mass(), state, used, firsts(False, False), seed=1)
    mixed, _ = decide(planner, mass(), state, tree.where(firsts(False, True), odd, used), firsts(False, True), seed=1)
    for leaf, one, other in zip(tree.leaves(mixed), tree.leaves(going), tree.leaves(fresh)):
        assert torch.equal(leaf[0], one[0]) and torch.equal(leaf[1], other[1])
    if name != "shooting":
        assert not torch.equal(going.mean[1], fresh.mean[1])


def test_a_plan_is_shifted_by_one_step_and_ends_in_zero() -> None:
    """One iteration with elites = samples, no noise: the mean that comes out is the one that went in, shifted."""
    planner = CEM(horizon=3, samples=4, elites=4, iterations=1, std=1e-9, min_std=0.0)
    plan = replace(planner.initial(2, 1), mean=torch.tensor([[[0.1], [0.2], [0.3]]] * 2))
    plan, _ = decide(planner, mass(), at([0.0, 0.0], [0.0, 0.0]), plan, firsts(False, True))
    torch.testing.assert_close(plan.mean[..., 0], torch.tensor([[0.2, 0.3, 0.0], [0.0, 0.0, 0.0]]))


class Rows:
    """Noise drawn once for a batch, and handed out for one row at a time: rows come first in every draw."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []
        self.row: int | None = None
        self.at = 0

    def __call__(self, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(*shape: int, like: Tensor) -> Tensor:
            if self.row is None:
                self.drawn.append(draw(*shape, like=like))
                return self.drawn[-1]
            self.at += 1
            return self.drawn[self.at - 1][self.row : self.row + 1]

        return drawn


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_is_a_loop_over_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planner, state = SMALL[name], at([0.5, 0.1], [-2.0, 0.3], [0.0, -0.4])
    before, _ = decide(planner, mass(), state, planner.initial(3, 1), firsts(True, True, True))
    rows = Rows()
    for kind in ("normal", "uniform"):
        monkeypatch.setattr(noise, kind, rows(getattr(noise, kind)))
    objective = mass(policy=lambda f: Certain(aim(f).mode()))
    together, told = decide(planner, objective, state, before, firsts(False, True, False))
    for row in range(3):
        rows.row, rows.at = row, 0
        own = slice(row, row + 1)
        alone, said = decide(
            planner, objective, tree.index(state, own), tree.index(before, own), firsts(False, True, False)[own]
        )
        for x, y in zip(tree.leaves(alone), tree.leaves(together)):
            torch.testing.assert_close(x[0], y[row])
        torch.testing.assert_close(said["value"][0], told["value"][row])


class Certain:
    """A policy without noise."""

    def __init__(self, action: Tensor) -> None:
        self.action = action

    def sample(self) -> Tensor:
        return self.action

    def mode(self) -> Tensor:
        return self.action

    def log_prob(self, action: Tensor, /) -> Tensor:
        return torch.zeros(action.shape[:-1])

    def entropy(self) -> Tensor:
        return torch.zeros(self.action.shape[:-1])


def test_cem_is_the_loop_of_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = CEM(horizon=3, samples=5, elites=2, iterations=2, std=0.5, momentum=0.1, min_std=0.01)
    white = torch.randn(1, 2, 5, 3, 1, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(noise, "normal", lambda *shape, like: white)
    plan, _ = planner(mass(), at([0.5, 0.0]), planner.initial(1, 1), firsts(True))
    mean, std = np.zeros(3), np.full(3, 0.5)
    for i in range(2):
        scored = []
        for n in range(5):
            actions = np.clip(mean + std * white[0, i, n, :, 0].numpy(), -1, 1)
            x, v, total = 0.5, 0.0, 0.0
            for u in actions:
                total -= x * x + v * v + 0.1 * u * u
                x, v = x + 0.1 * v, v + 0.1 * u
            scored.append((total, tuple(actions)))
        elite = np.array([actions for _, actions in sorted(scored, reverse=True)[:2]])
        mean = 0.9 * elite.mean(0) + 0.1 * mean
        std = np.maximum(0.9 * elite.std(0) + 0.1 * std, 0.01)
    np.testing.assert_allclose(plan.mean[0, :, 0], mean, atol=1e-6)
    np.testing.assert_allclose(plan.std[0, :, 0], std, atol=1e-6)


def test_mppi_is_the_weighted_mean_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = MPPI(horizon=1, samples=2, iterations=1, std=1.0, temperature=0.1)
    monkeypatch.setattr(noise, "normal", lambda *shape, like: torch.tensor([0.5, -0.5]).view(1, 1, 2, 1, 1))
    objective = mass(bootstrap="last", value=lambda f: f[..., 1])  # scores: cost -0.025, value +-0.05
    plan, told = planner(objective, at([0.0, 0.0]), planner.initial(1, 1), firsts(True))
    weight = 1 / (1 + np.exp(-1.0))  # softmax of (0.025, -0.075) / 0.1
    torch.testing.assert_close(plan.action, torch.tensor([[0.5 * (2 * weight - 1)]], dtype=torch.float32))
    assert told["evaluations"] == 2 and told["value"].item() == pytest.approx(0.025)


def test_what_is_executed_is_chosen_in_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    base = PolicyMPPI(horizon=1, samples=3, policy_samples=0, elites=3, iterations=1, max_std=1.0, temperature=0.5)
    white = torch.tensor([0.6, 0.0, -0.6]).view(1, 1, 3, 1, 1)
    monkeypatch.setattr(noise, "normal", lambda *s, like: white if len(s) == 5 else torch.full(s, 0.1))
    monkeypatch.setattr(noise, "gumbel", lambda *s, like: torch.tensor([[0.0, 9.0, 0.0]]))
    objective = mass(bootstrap="last", value=lambda f: 10 * f[..., 1])
    chosen = {}
    for select in ("sample", "best", "mean"):
        plan, _ = replace(base, select=select)(objective, at([0.0, 0.0]), base.initial(1, 1), firsts(True))
        chosen[select] = plan.action.item()
    assert chosen["sample"] == 0.0 and chosen["best"] == pytest.approx(0.6)
    assert chosen["mean"] == pytest.approx(plan.mean.item()) and 0 < chosen["mean"] < 0.6
    noisy, _ = replace(base, exploration=1.0)(objective, at([0.0, 0.0]), base.initial(1, 1), firsts(True))
    assert noisy.action.item() == pytest.approx(0.1 * noisy.std.item())


def test_policy_sequences_stay_in_the_population_and_are_counted() -> None:
    planner = PolicyMPPI(horizon=3, samples=8, policy_samples=8, elites=4, iterations=2, select="best")
    plan, told = decide(planner, mass(policy=lambda f: Certain(-f[..., :1])), at([0.5, 0.0]),
                        planner.initial(1, 1), firsts(True))
    assert told["policy_elites"] == 1 and plan.action.item() == pytest.approx(-0.5)
    assert told["evaluations"] == (8 + 2 * 8) * 3


def test_coloured_noise_has_unit_variance_and_the_spectrum_asked_for() -> None:
    white = torch.randn(4000, 16, 1, generator=torch.Generator().manual_seed(0))
    assert noise.coloured(white, 0.0) is white
    for exponent in (0.5, 2.0):
        out = noise.coloured(white, exponent)
        assert out.std().item() == pytest.approx(1, abs=0.02)
        power = torch.fft.rfft(out[..., 0]).abs().square().mean(0)
        assert (power[4] / power[1]).item() == pytest.approx(4**-exponent, rel=0.1)
    steps = noise.coloured(white, 2.0).diff(dim=1).square().mean()
    assert steps < 0.3 * white.diff(dim=1).square().mean(), "it is correlated along time"


# Objectives


def trajectory(reward: list[float], continues: list[float]) -> Trajectory[Point]:
    states = Point(x=torch.arange(1.0, len(reward) + 2).view(1, -1, 1))
    return Trajectory(
        states=states, action=torch.zeros(1, len(reward), 1), reward=torch.tensor([reward]),
        continues=torch.tensor([continues]),
    )


@pytest.mark.parametrize("changes, expected", [
    ({}, 1 + 0.5 * 0.8 * 2 + 0.25 * 0.8 * 0.25 * 4),
    ({"continuation": "ignored"}, 1 + 0.5 * 2 + 0.25 * 4),
    ({"continuation": "threshold"}, 1 + 0.5 * 2 + 0),
    ({"bootstrap": "last"}, 1 + 0.8 + 0.2 + 0.125 * 0.2 * 40),
    ({"bootstrap": "every", "continuation": "ignored"}, ((1 + 10) + (2 + 7.5) + (3 + 5)) / 3),
    ({"optimism": -2.0, "continuation": "ignored"}, 3 - 2 * (0.1 + 0.05 * 2 + 0.025 * 3)),
    ({"optimism": -2.0, "continuation": "ignored", "bootstrap": "last", "doubts_end": True},
     3 - 2 * 0.275 + 0.125 * (40 - 2 * 0.4)),
])
def test_scores_worked_out_by_hand(changes: dict[str, Any], expected: float) -> None:
    """Rewards 1, 2, 4; c = 0.8, 0.25, 1; discount 1/2; V(s) = 10 s at s = 2, 3, 4; doubt(s) = s / 10."""
    objective = mass(
        discount=0.5, value=lambda f: 10 * f[..., 0], doubt=lambda s, a: 0.1 * s.x[:, 0], **changes
    )
    worth = objective.worth(trajectory([1.0, 2.0, 4.0], [0.8, 0.25, 1.0]))
    assert worth.item() == pytest.approx(expected)


def test_a_q_ensemble_gives_values_and_doubt() -> None:
    def q(features: Tensor, action: Tensor) -> Tensor:
        return torch.stack([features[..., 0] + action[..., 0], features[..., 0] - action[..., 0]])

    value = policy_value(lambda f: Certain(0.5 * torch.ones_like(f[..., :1])), lambda f, a: q(f, a)[0])
    assert value(torch.tensor([[2.0, 0.0]])).item() == 2.5
    assert q_spread(double_integrator(), q)(at([2.0, 0.0]), torch.tensor([[0.5]])).item() == pytest.approx(0.5 * 2**0.5)


class Cliff:
    """A walk whose reward grows with speed, and which ends beyond 1; at speeds below -0.5 it is not even a number."""

    feature_dim = 1

    def step(self, state: Point, action: Tensor) -> Point:
        return Point(x=state.x + action)

    def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
        reward = torch.where(action[..., 0] < -0.5, torch.nan, 1 + action[..., 0])
        return Prediction(reward=reward, continues=(state.x[..., 0] <= 1).float())

    def features(self, state: Point) -> Tensor:
        return state.x


@pytest.mark.parametrize("name", ["shooting", "predictive", "cem", "icem", "mppi"])
def test_a_plan_keeps_off_the_cliff_and_off_what_is_not_finite(name: str) -> None:
    planner = replace(SMALL[name], horizon=8, samples=256)
    state = Point(x=torch.tensor([[0.0], [0.9]]))
    objective: Any = ExpectedReturn(model=Cliff(), action=PUSH, discount=1.0)  # type: ignore[arg-type]
    score = objective.score(state, torch.full((2, 1, 8, 1), -0.6))
    assert (score == WORST).all()
    plan, told = decide(planner, objective, state, planner.initial(2, 1), firsts(True, True))
    assert (told["value"] > 5).all() and (plan.action[:, 0] <= torch.tensor([1.0, 0.1]) + 0.02).all()


def test_pendulum_is_gymnasiums() -> None:
    env: Any = gymnasium.make("Pendulum-v1").unwrapped
    obs, _ = env.reset(seed=1)
    model, state = Pendulum(), Point(x=torch.from_numpy(obs).unsqueeze(0))
    for torque in (-2.0, 0.5, 2.0, 1.0):
        action = torch.tensor([[torque / 2]])
        obs, reward, *_ = env.step(np.array([torque], np.float32))
        before, state = state, model.step(state, action)
        np.testing.assert_allclose(state.x[0], obs, atol=1e-5)
        assert model.predict(before, action, state).reward.item() == pytest.approx(reward, abs=1e-4)


# Tracing, latent models, bad input


@pytest.mark.parametrize("name", SMALL)
def test_a_call_is_one_graph(name: str) -> None:
    planner, state, first = SMALL[name], at([0.5, 0.1], [0.2, 0.0]), firsts(True, False)
    plan = planner.initial(2, 1)
    torch.compiler.reset()
    traced = torch.compile(
        lambda s, p, f: planner(mass_objective, s, p, f), fullgraph=True, backend="eager", dynamic=False
    )
    mass_objective = mass()
    expected, told = decide(planner, mass_objective, state, plan, first)
    with Stream(seed=0), torch.no_grad(), dynamo.patch(trace_autograd_ops=True):
        found, said = traced(state, plan, first)
    torch.compiler.reset()
    for x, y in zip(tree.leaves((found, said)), tree.leaves((expected, told))):
        torch.testing.assert_close(x, y)


def test_a_dreamer_plans_in_its_latent_model() -> None:
    agent = make_agent(make_spec("continuous", size=2))
    objective = ExpectedReturn(
        model=agent.model, action=ActionSpec(kind="continuous", size=2), policy=agent.actor,
        value=agent.value.value, bootstrap="last",
    )
    planner = PolicyMPPI(horizon=2, samples=8, policy_samples=2, elites=3, iterations=2)
    plan, told = decide(planner, objective, agent.model.initial(2), planner.initial(2, 2), firsts(True, True))
    assert plan.action.shape == (2, 2) and told["evaluations"] == (2 + 16) * 2
    assert bool((plan.action.abs() <= 1).all())


@pytest.mark.parametrize("make, said", [
    (lambda: CEM(samples=4, elites=5), "elites must be at most samples, got 5 of 4"),
    (lambda: ICEM(samples=4, elites=5), "elites must be at most samples, got 5 of 4"),
    (lambda: PolicyMPPI(samples=4, elites=5), "elites must be at most samples, got 5 of 4"),
    (lambda: PolicyMPPI(samples=4, elites=2), "policy_samples are part of samples, .* from 0 to 4, got 24"),
    (lambda: CEM(horizon=0), "horizon must be at least 1, got 0"),
    (lambda: MPPI(temperature=0.0), "temperature must be above 0"),
    (lambda: mass(discount=1.5), r"discount must be in \[0, 1\], got 1.5"),
    (lambda: mass(bootstrap="last"), "asks for a value, and none was given; hand over value="),
    (lambda: mass(optimism=1.0), "LinearQuadratic has no disagreement; hand over doubt="),
    (lambda: mass(doubts_end=True), "doubts_end asks for a bootstrap"),
    (lambda: decide(SMALL["policy_mppi"], mass(policy=None), at([0.0, 0.0]), SMALL["policy_mppi"].initial(1, 1),
                    firsts(True)), "asks the policy for proposals, and the objective has none"),
    *[(lambda p=planner: decide(p, mass(action=ActionSpec(kind="discrete", size=1)), at([0.0, 0.0]), p.initial(1, 1),
                                firsts(True)), "plans continuous actions, but this environment's are discrete; take")
      for planner in SMALL.values()],
])
def test_bad_input_is_a_sentence(make: Callable[[], Any], said: str) -> None:
    with pytest.raises((UserError, ValueError)) as caught:
        make()
    assert re.search(said, str(caught.value))
