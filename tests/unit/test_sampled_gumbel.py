"""Tree search over sampled actions, where the best action is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo

from tests.unit.models import make_agent, make_spec
from worldmodel import tree
from worldmodel.distributions import BoundedNormal
from worldmodel.errors import UserError
from worldmodel.models.analytic import Point, double_integrator
from worldmodel.planning.cem import CEM
from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.planning.sampled_gumbel import SampledGumbelMuZero
from worldmodel.planning.search import Tree
from worldmodel.rng import Stream
from worldmodel.types import ActionSpec

PUSH = ActionSpec(kind="continuous", size=1)


def unsure(features: Tensor) -> BoundedNormal:
    """Around 0, everywhere."""
    zero = torch.zeros_like(features[..., :1])
    return BoundedNormal(zero, zero + 3, max_std=0.8)


def mass(**changes: Any) -> ExpectedReturn[Point]:
    model = double_integrator()
    given = {"model": model, "action": PUSH, "discount": 0.99, "policy": unsure, "value": model.value(0.99)}
    return ExpectedReturn(**(given | changes))


def at(*rows: list[float]) -> Point:
    return Point(x=torch.tensor(rows))


def decide(planner: Any, objective: Any, state: Any) -> Any:
    rows = tree.leaves(state)[0].shape[0]
    with Stream(seed=0), torch.no_grad():
        blank = planner.initial(rows, objective.action.size)
        return planner(objective, state, blank, torch.ones(rows, dtype=torch.bool))


@pytest.mark.parametrize("policy", [unsure, None])
def test_it_pushes_as_the_riccati_solution_does(policy: Any) -> None:
    planner = SampledGumbelMuZero(simulations=64, actions=32, anywhere=8, considered=32, gumbel_scale=0.0)
    state = at([1.0, 0.0], [-1.0, 0.0], [0.0, 0.1])
    plan, told = decide(planner, mass(policy=policy), state)
    _, gain = double_integrator().optimum(0.99)
    best = (-state.x @ gain.mT).clamp(-1, 1)
    assert (plan.action - best).abs().max() < 0.3 and bool((plan.mean[:, 0] * best > 0).all())
    assert bool((plan.action.abs() <= 1).all()) and told["evaluations"] == 64


def test_a_prior_is_weighed_by_how_its_actions_were_drawn() -> None:
    """Half of the actions from a policy pi, half from u = 1/2 on [-1, 1]: the logit is log(pi / (pi / 2 + u / 2))."""
    planner = SampledGumbelMuZero(actions=8, anywhere=4)
    features = torch.zeros(2, 2)
    with Stream(seed=0):
        actions, logits = planner.draw(mass(), features)
    density = unsure(features.unsqueeze(1).expand(-1, 8, -1)).log_prob(actions).exp()
    torch.testing.assert_close(logits, torch.log(density / (0.5 * density + 0.25)))
    assert bool((actions.abs() <= 1).all()) and actions.shape == (2, 8, 1)
    assert bool((planner.draw(mass(policy=None), features)[1] == 0).all())
    assert bool((replace(planner, anywhere=0).draw(mass(), features)[1] == 0).all()), "drawn from the policy alone"
    everywhere = replace(planner, anywhere=8).draw(mass(), features)
    expected = unsure(features.unsqueeze(1).expand(-1, 8, -1)).log_prob(everywhere[0]) + math.log(2)
    torch.testing.assert_close(everywhere[1], expected)


def test_every_node_has_actions_of_its_own_and_children_are_what_they_lead_to() -> None:
    planner, objective, state = SampledGumbelMuZero(actions=3, anywhere=1), mass(), at([0.5, 0.0], [0.1, 0.2])

    def draw(features: Tensor) -> tuple[Tensor, Tensor]:
        return planner.draw(objective, features)

    with Stream(seed=1), torch.no_grad():
        search = Tree(objective, state, torch.ones(2, dtype=torch.bool), 6, planner, draw)
        for i in range(6):
            search.simulate(i, lambda node: -node.visits, lambda node: -node.visits, 3)
    assert len(search.actions[0, :, -1, 0].unique()) == 7, "one of each node's, drawn anywhere"
    child = search.children[0, 0, 1]
    expected = objective.model.step(at([0.5, 0.0]), search.actions[:1, 0, 1])
    torch.testing.assert_close(search.states.x[0, child], expected.x[0])


def test_a_call_is_one_graph() -> None:
    planner, state, objective = SampledGumbelMuZero(simulations=4, actions=4, anywhere=1), at([0.5, 0.0]), mass()
    expected, told = decide(planner, objective, state)
    torch.compiler.reset()
    traced = torch.compile(planner.__call__, fullgraph=True, backend="eager", dynamic=False)
    with Stream(seed=0), torch.no_grad(), dynamo.patch(trace_autograd_ops=True):
        found, said = traced(objective, state, planner.initial(1, 1), torch.ones(1, dtype=torch.bool))
    torch.compiler.reset()
    for x, y in zip(tree.leaves((found, said)), tree.leaves((expected, told))):
        torch.testing.assert_close(x, y)


def test_a_dreamer_with_continuous_actions_is_searched() -> None:
    spec = make_spec("continuous", size=2)
    agent = make_agent(spec)
    objective = ExpectedReturn(model=agent.model, action=spec.action, policy=agent.actor, value=agent.value.value)
    plan, told = decide(SampledGumbelMuZero(simulations=4), objective, agent.model.initial(3))
    assert plan.action.shape == (3, 2) and bool((plan.action.abs() <= 1).all())
    assert bool(told["value"].isfinite().all()) and plan.std.shape == (3, 1, 2)


@pytest.mark.parametrize("planner, changes, said", [
    (SampledGumbelMuZero(), {"value": None}, "judges leaves by a value, and the objective has none"),
    (SampledGumbelMuZero(), {"action": ActionSpec(kind="discrete", size=2)}, "plans continuous actions, .* discrete"),
    (CEM(), {"action": replace(PUSH, is_bounded=False)}, r"CEM plans actions in \[-1, 1\], .* have no finite bounds"),
    (SampledGumbelMuZero(), {"action": replace(PUSH, is_bounded=False)}, "have no finite bounds; wrap it"),
])
def test_bad_input_is_a_sentence(planner: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        decide(planner, mass(**changes), at([0.0, 0.0]))


def test_numbers_are_checked() -> None:
    with pytest.raises(ValueError, match="anywhere is part of actions, so it must be from 0 to 4, got 5"):
        SampledGumbelMuZero(actions=4, anywhere=5)
    with pytest.raises(ValueError, match="actions must be at least 1, got 0"):
        SampledGumbelMuZero(actions=0, anywhere=0)
