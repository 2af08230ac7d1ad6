"""Planners of discrete actions on MDPs small enough to be worked by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo

from tests.unit.models import make_agent, make_spec
from worldmodel import tree
from worldmodel.errors import UserError
from worldmodel.models.analytic import Point
from worldmodel.planning.categorical import CategoricalCEM
from worldmodel.planning.cem import CEM
from worldmodel.planning.gumbel import GumbelMuZero, schedule
from worldmodel.planning.muzero import MuZero
from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.planning.population import blank
from worldmodel.planning.search import Tree
from worldmodel.rng import Stream
from worldmodel.types import ActionSpec, Prediction

NEXT = torch.tensor([[1, 2], [3, 3], [3, 4], [3, 3], [3, 3]])
REWARD = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
"""From 0: left earns 1 and then nothing; right, then right earns 3 and ends. Greed loses."""


class Table:
    """States are one-hot over 5; state 4 is terminal."""

    feature_dim = 5

    def step(self, state: Point, action: Tensor) -> Point:
        return Point(x=torch.eye(5)[NEXT[state.x.argmax(-1), action.argmax(-1)]])

    def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
        reward = REWARD[previous.x.argmax(-1), action.argmax(-1)]
        return Prediction(reward=reward, continues=1 - state.x[..., 4])

    def features(self, state: Point) -> Tensor:
        return state.x


def table(size: int = 2, **changes: Any) -> ExpectedReturn[Any]:
    action = ActionSpec(kind="discrete", size=size)
    given = {"model": Table(), "action": action, "discount": 0.9, "value": lambda f: torch.zeros(f.shape[:-1])}
    return ExpectedReturn(**(given | changes))


def start(rows: int = 3) -> Point:
    return Point(x=torch.eye(5)[torch.zeros(rows, dtype=torch.long)])


SMALL: dict[str, Any] = {
    "cem": CategoricalCEM(horizon=3, samples=32, elites=6, iterations=3),
    "muzero": MuZero(simulations=150, max_depth=4), "gumbel": GumbelMuZero(simulations=16, gumbel_scale=0.0),
    "noisy": MuZero(simulations=150, max_depth=4, root_noise=0.25), "sampled": GumbelMuZero(simulations=16),
}


def decide(planner: Any, objective: Any, state: Any, *, first: Tensor | None = None) -> Any:
    rows = tree.leaves(state)[0].shape[0]
    with Stream(seed=0), torch.no_grad():
        first = torch.ones(rows, dtype=torch.bool) if first is None else first
        return planner(objective, state, planner.initial(rows, objective.action.size), first)


@pytest.mark.parametrize("name", SMALL)
def test_the_way_that_pays_later_is_found(name: str) -> None:
    plan, told = decide(SMALL[name], table(), start())
    assert plan.action.tolist() == [[0.0, 1.0]] * 3
    torch.testing.assert_close(plan.mean.sum(-1), torch.ones(plan.mean.shape[:2]))
    assert (plan.mean[:, 0, 1] > 0.5).all() and told["evaluations"] > 0


def test_values_are_means_of_returns_worked_by_hand() -> None:
    """One action, reward 1 for ever, discount 1/2, V = 10: returns from the root 10, 1 + 5, 1 + (1 + 5) / 2."""

    class Chain(Table):
        def step(self, state: Point, action: Tensor) -> Point:
            return state

        def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
            return Prediction(reward=torch.ones(action.shape[:-1]), continues=torch.ones(action.shape[:-1]))

    objective = table(1, model=Chain(), discount=0.5, value=lambda f: torch.full(f.shape[:-1], 10.0))
    for simulations, expected in ((1, (10 + 6) / 2), (2, (10 + 6 + 4) / 3), (3, (10 + 6 + 4 + 3) / 4)):
        for kind in (MuZero, GumbelMuZero):
            _, told = decide(kind(simulations=simulations), objective, start())
            torch.testing.assert_close(told["value"], torch.full((3,), expected))


def test_a_tree_that_saw_everything_knows_the_best_return() -> None:
    best = max(sum(r for r in _rewards(plan)) for plan in product((0, 1), repeat=2))
    state, rows = start(), torch.ones(3, dtype=torch.bool)
    search: Tree[Any] = Tree(table(), state, rows, 60, MuZero())
    with torch.no_grad():
        for i in range(60):
            search.simulate(i, MuZero().rule, MuZero().rule, 16)
    q = search.root().q
    assert q[0, 0].item() == pytest.approx(1.0) and 2.0 < q[0, 1].item() <= best
    assert (search.root().visits.sum(1) == 60).all() and (search.count[:, 0] == 61).all()


def _rewards(plan: tuple[int, ...]) -> list[float]:
    at, out = 0, []
    for t, action in enumerate(plan):
        out.append(0.9**t * REWARD[at, action].item())
        at = int(NEXT[at, action])
    return out


def test_the_prior_decides_where_values_do_not() -> None:
    class Fond:
        """Prefers the second action."""

        def __init__(self, features: Tensor) -> None:
            self.lead = features.shape[:-1]

        def log_prob(self, action: Tensor, /) -> Tensor:
            return (action * torch.tensor([0.2, 0.8]).log()).sum(-1)

    objective = table(policy=Fond)
    there = Point(x=torch.eye(5)[torch.tensor([3])])
    for planner in (MuZero(simulations=8), GumbelMuZero(simulations=8, gumbel_scale=0.0)):
        assert decide(planner, objective, there)[0].action.tolist() == [[0.0, 1.0]]


def test_sequential_halving_spends_its_visits() -> None:
    assert schedule(1, 3) == [0, 1, 2]
    assert schedule(4, 8) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert len(schedule(16, 50)) == 50 and schedule(16, 50)[:16] == [0] * 16


def test_a_batch_is_its_rows_and_first_makes_categorical_cem_forget() -> None:
    state = Point(x=torch.eye(5)[torch.tensor([0, 2, 1])])
    for planner in (MuZero(simulations=12), GumbelMuZero(simulations=12, gumbel_scale=0.0)):
        together, told = decide(planner, table(), state)
        for row in range(3):
            alone, said = decide(planner, table(), tree.index(state, slice(row, row + 1)))
            torch.testing.assert_close(alone.mean[0], together.mean[row])
            torch.testing.assert_close(said["value"][0], told["value"][row])
    planner = SMALL["cem"]
    used, _ = decide(planner, table(), start(2))
    nan = tree.map(lambda x: torch.full_like(x, torch.nan), used)
    with Stream(seed=1):
        mixed, _ = planner(table(), start(2), tree.where(torch.tensor([False, True]), nan, used),
                           torch.tensor([False, True]))
    with Stream(seed=1):
        fresh, _ = planner(table(), start(2), planner.initial(2, 2), torch.tensor([True, True]))
    assert torch.equal(mixed.mean[1], fresh.mean[1]) and bool(mixed.mean.isfinite().all())


@pytest.mark.parametrize("name", ["cem", "muzero", "sampled"])
def test_a_call_is_one_graph(name: str) -> None:
    planner = {"muzero": MuZero(simulations=4), "sampled": GumbelMuZero(simulations=4)}.get(name, SMALL[name])
    state, first, objective = start(), torch.ones(3, dtype=torch.bool), table()
    plan = planner.initial(3, 2)
    expected, told = decide(planner, objective, state)
    torch.compiler.reset()
    traced = torch.compile(lambda s, p, f: planner(objective, s, p, f), fullgraph=True, backend="eager", dynamic=False)
    with Stream(seed=0), torch.no_grad(), dynamo.patch(trace_autograd_ops=True):
        found, said = traced(state, plan, first)
    torch.compiler.reset()
    for x, y in zip(tree.leaves((found, said)), tree.leaves((expected, told))):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("planner", [MuZero(simulations=3), GumbelMuZero(simulations=3)])
def test_a_dreamer_is_searched(planner: Any) -> None:
    agent = make_agent(make_spec("discrete", size=3))
    objective = ExpectedReturn(
        model=agent.model, action=ActionSpec(kind="discrete", size=3), policy=agent.actor, value=agent.value.value,
    )
    plan, told = decide(planner, objective, agent.model.initial(2))
    assert plan.action.sum(1).tolist() == [1.0, 1.0] and bool(told["value"].isfinite().all())


@pytest.mark.parametrize("planner, changes, said", [
    (MuZero(), {"value": None}, "MuZero judges leaves by a value, and the objective has none"),
    (GumbelMuZero(), {"value": None}, "GumbelMuZero judges leaves by a value"),
    *[(p, {"action": ActionSpec(kind="continuous", size=2)}, "plans discrete actions, .* are continuous; take CEM")
      for p in (MuZero(), GumbelMuZero(), CategoricalCEM())],
    (CEM(), {}, "CEM plans continuous actions, .* are discrete; take CategoricalCEM"),
])
def test_bad_input_is_a_sentence(planner: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        decide(planner, table(**changes), start())


def test_numbers_are_checked() -> None:
    with pytest.raises(ValueError, match="elites must be at most samples, got 9 of 8"):
        CategoricalCEM(samples=8, elites=9)
    with pytest.raises(ValueError, match="simulations must be at least 1, got 0"):
        MuZero(simulations=0)
    assert blank(2, 1, 3).kept.shape == (2, 0, 1, 3)
