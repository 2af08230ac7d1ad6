"""An agent that plans in another agent's world model: the other learns as it did, and shares its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.unit.models import make_batch, make_spec
from worldmodel import tree
from worldmodel.agents.planner.agent import PlannerAgent, PlannerAgentConfig
from worldmodel.agents.random.agent import RandomConfig
from worldmodel.configs import planners
from worldmodel.configs.sizes import dreamer
from worldmodel.errors import UserError
from worldmodel.planning.cem import CEM
from worldmodel.planning.gradient import GradientPlanner
from worldmodel.planning.gumbel import GumbelMuZero
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.types import EnvSpec, Step

MPPI = PolicyMPPI(horizon=3, samples=12, policy_samples=2, elites=4, iterations=2, select="mean")


def make(spec: EnvSpec, **changes: Any) -> PlannerAgent:
    return PlannerAgentConfig(agent=dreamer("nano", imagination=3), **changes).build(spec, seed=0)


def make_step(spec: EnvSpec, rows: int = 2, *, first: tuple[bool, ...] = (True, True), seed: int = 0) -> Step:
    g = torch.Generator().manual_seed(seed)
    obs = {"image": torch.randint(0, 256, (rows, 32, 32, 3), generator=g, dtype=torch.uint8)}
    no = torch.zeros(rows, dtype=torch.bool)
    return Step(obs=obs, reward=torch.zeros(rows), is_first=torch.tensor(first), is_last=no, is_terminal=no)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree.leaves(one), tree.leaves(other), strict=True))


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_it_learns_exactly_as_the_agent_that_it_wraps(kind: str) -> None:
    spec = make_spec(kind)
    planner = MPPI if kind == "continuous" else GumbelMuZero(simulations=3)
    plain, planned = dreamer("nano", imagination=3).build(spec, seed=0), make(spec, evaluate=planner, collect=planner)
    assert planned.memory_spec == plain.memory_spec
    for seed in (0, 1):
        batch = make_batch(spec, seed=seed)
        assert same(plain.learn(batch).metrics, planned.learn(batch).metrics)
    assert same(plain.state_dict(), planned.state_dict()) and plain.state_dict().keys() == planned.state_dict().keys()


@pytest.mark.parametrize("explore", [True, False])
def test_without_a_planner_it_acts_as_the_agent_does_bit_for_bit(explore: bool) -> None:
    spec = make_spec("continuous")
    plain, wrapped = dreamer("nano", imagination=3).build(spec, seed=0), make(spec)
    carry, other = plain.initial(2, seed=4), wrapped.initial(2, seed=4)
    for at in range(3):
        step = make_step(spec, first=(at == 0, at != 1), seed=at)
        action, carry = plain.act(carry, step, explore=explore)
        mine, other = wrapped.act(other, step, explore=explore)
        assert torch.equal(action, mine)
        assert same(plain.memory(carry), wrapped.memory(other)) and plain.memory(carry)


def test_planners_for_collecting_and_for_evaluating_are_chosen_apart() -> None:
    spec, step = make_spec("continuous"), make_step(make_spec("continuous"))
    plain = make(spec)
    for purpose, explore in (("collect", True), ("evaluate", False)):
        agent = make(spec, **{purpose: MPPI})
        mine, carry = agent.act(agent.initial(2, seed=1), step, explore=explore)
        policy, _ = plain.act(plain.initial(2, seed=1), step, explore=explore)
        assert not torch.equal(mine, policy) and bool((mine.abs() <= 1).all())
        assert carry.plans.keys() == {purpose} and torch.equal(carry.plans[purpose].action, mine)
        other, kept = agent.act(agent.initial(2, seed=1), step, explore=not explore)
        assert torch.equal(other, plain.act(plain.initial(2, seed=1), step, explore=not explore)[0])
        assert same(kept.plans, agent.initial(2, seed=1).plans), "nobody planned"


def test_a_plan_is_handed_on_and_a_row_that_begins_forgets_it() -> None:
    spec = make_spec("continuous")
    agent = make(spec, evaluate=replace(MPPI, samples=2, policy_samples=1, elites=2, iterations=1, max_std=0.05))
    _, carry = agent.act(agent.initial(2, seed=1), make_step(spec), explore=False)
    far = tree.map(lambda x: torch.full_like(x, 0.9), carry.plans)
    _, after = agent.act(replace(carry, plans=far), make_step(spec, first=(True, False)), explore=False)
    mean = after.plans["evaluate"].mean[:, 0].abs().mean(-1)
    assert mean[1] > 0.4 > mean[0]


def test_what_others_replace_in_its_tables_is_what_acts() -> None:
    spec = make_spec("continuous")
    agent, calls = make(spec, evaluate=MPPI), []
    inner = agent.parts["act"]
    agent.parts["act"] = lambda *args, **kwargs: calls.append(kwargs) or inner(*args, **kwargs)
    agent.act(agent.initial(2), make_step(spec), explore=False)
    assert calls == [{"purpose": "evaluate"}]
    assert agent.steps is agent.agent.steps and "losses" in agent.parts
    climbing = make(spec, evaluate=GradientPlanner(horizon=2, restarts=2, steps=1))
    assert "act" not in climbing.parts, "gradients are not traced"
    action, _ = climbing.act(climbing.initial(2), make_step(spec), explore=False)
    assert all(not p.grad.any() for p in climbing.agent.actor.parameters() if p.grad is not None)
    assert bool(action.isfinite().all())


def test_acting_is_one_graph() -> None:
    spec, step = make_spec("continuous"), make_step(make_spec("continuous"))
    agent = make(spec, collect=replace(MPPI, iterations=1, horizon=1))
    expected, _ = agent.act(agent.initial(2, seed=3), step, explore=True)
    torch.compiler.reset()
    agent.parts["act"] = torch.compile(agent.parts["act"], fullgraph=True, backend="eager", dynamic=False)
    found, _ = agent.act(agent.initial(2, seed=3), step, explore=True)
    torch.compiler.reset()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", planners.CONTINUOUS + planners.DISCRETE)
def test_every_shipped_planner_acts_for_a_dreamer(name: str) -> None:
    spec = make_spec("continuous" if name in planners.CONTINUOUS else "discrete")
    planner = getattr(planners, name)(trajectories=12, horizon=2)
    agent = make(spec, evaluate=planner, collect=planners.exploring(planner))
    carry = agent.initial(2)
    for explore in (True, False):
        action, carry = agent.act(carry, make_step(spec), explore=explore)
        assert action.shape == (2, spec.action.size) and bool((action.abs() <= 1).all())


def test_what_cannot_be_planned_for_is_a_sentence() -> None:
    spec = make_spec("discrete")
    with pytest.raises(UserError, match="RandomAgent cannot be planned for: it lacks Imagines and Judges"):
        PlannerAgentConfig(agent=RandomConfig(), evaluate=CEM()).build(spec)
    agent = make(spec, evaluate=CEM())
    with pytest.raises(UserError, match="CEM plans continuous actions, but this environment's are discrete"):
        agent.act(agent.initial(2), make_step(spec), explore=False)
