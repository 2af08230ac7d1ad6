"""What a planner promises (``worldmodel.protocols.Planner``), asked on small models of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo

from worldmodel import tree
from worldmodel.check import modules
from worldmodel.check.report import Broken, Check, Report, Skip, examine
from worldmodel.check.samples import B, changed, copied, difference
from worldmodel.check.still import Still
from worldmodel.errors import UserError
from worldmodel.tree import struct
from worldmodel.types import ActionSpec, Plan, Prediction

SIZE = 3


@struct
class Place:
    """Where the drift is."""

    x: Tensor


class Drift:
    """x' = 0.9 x + 0.2 a, reward -|x'|^2: smooth, deterministic, and every action matters."""

    feature_dim = SIZE

    def step(self, state: Place, action: Tensor) -> Place:
        return Place(x=0.9 * state.x + 0.2 * action)

    def predict(self, previous: Place, action: Tensor, state: Place) -> Prediction:
        reward = -state.x.square().sum(-1)
        return Prediction(reward=reward, continues=torch.full_like(reward, 0.97))

    def features(self, state: Place) -> Tensor:
        return state.x

    def disagreement(self, state: Place, action: Tensor) -> Tensor:
        return 0.1 * state.x.abs().sum(-1) + 0.01 * action.square().sum(-1)


class Homing:
    """A policy that goes home, as a distribution without noise."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def sample(self) -> Tensor:
        return (-self.features).clamp(-1, 1)

    def mode(self) -> Tensor:
        return self.sample()

    def log_prob(self, action: Tensor, /) -> Tensor:
        return (action * torch.log_softmax(-self.features, -1)).sum(-1)

    def entropy(self) -> Tensor:
        return torch.zeros(self.features.shape[:-1])


class Choosing(Homing):
    """The same over one-hot actions."""

    def sample(self) -> Tensor:
        return F.one_hot((-self.features).argmax(-1), SIZE).float()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Homeward:
    """Implements ``PlanningObjective``: the sum of rewards."""

    action: ActionSpec
    model: Any = dataclasses.field(default_factory=Drift)
    discount: float = 0.97

    @property
    def policy(self) -> Any:
        return Homing if self.action.kind == "continuous" else Choosing

    def value(self, features: Tensor) -> Tensor:
        return -features.square().sum(-1)

    def score(self, state: Place, action: Tensor) -> Tensor:
        x, total = state.x.unsqueeze(1).expand(*action.shape[:2], SIZE), action.new_zeros(action.shape[:2])
        for t in range(action.shape[2]):
            x = 0.9 * x + 0.2 * action[:, :, t]
            total = total - self.discount**t * x.square().sum(-1)
        return total

    def propose(self, state: Place, count: int, horizon: int) -> Tensor:
        x, actions = state.x.repeat_interleave(count, 0), []
        for _ in range(horizon):
            actions.append(self.policy(x).sample())
            x = 0.9 * x + 0.2 * actions[-1]
        return torch.stack(actions, 1).unflatten(0, (-1, count))


class Subject:
    """A planner, and what it is asked to plan."""

    def __init__(self, planner: Any) -> None:
        self.planner = planner
        g = torch.Generator().manual_seed(5)
        self.state = Place(x=3 * torch.randn(B, SIZE, generator=g))
        self.first = torch.tensor([True, False, True])
        self.objective: Homeward
        self.plan: Plan

    def decide(self, state: Place, plan: Plan, first: Tensor) -> tuple[Plan, dict[str, Tensor]]:
        return self.planner(self.objective, state, plan, first)


def check_planner(planner: Any) -> Report:
    """Put a planner to every promise of the seam, with the kind of actions that it plans."""
    return examine("planner", type(planner).__name__, CHECKS, Subject(planner))


def plans(s: Subject) -> str:
    """Find the kind of actions, and look at what comes back."""
    said = ""
    for kind in ("continuous", "discrete"):
        s.objective = Homeward(action=ActionSpec(kind=kind, size=SIZE))  # type: ignore[arg-type]
        s.plan = s.planner.initial(B, SIZE)
        try:
            with modules.seeded(0), torch.no_grad():
                s.plan, told = s.decide(s.state, s.plan, torch.ones(B, dtype=torch.bool))
        except UserError as error:
            said = str(error)
            continue
        break
    else:
        raise Broken(f"it plans neither continuous nor discrete actions: {said}")
    if tuple(s.plan.action.shape) != (B, SIZE):
        raise Broken(f"plan.action has shape {tuple(s.plan.action.shape)}, expected {(B, SIZE)}: (B, A)")
    missing = {"value", "evaluations"} - set(told)
    if missing:
        raise Broken(f"what it tells lacks {', '.join(sorted(missing))}; give value (B,) and evaluations ()")
    if tuple(told["value"].shape) != (B,) or told["evaluations"].numel() != 1:
        raise Broken("value must have shape (B,) and evaluations ()")
    modules.is_finite((s.plan, told), "the plan and what is told")
    return f"{kind} actions, {int(told['evaluations'])} model steps a decision"


def fits_itself(s: Subject) -> None:
    """What comes out goes in again."""
    fresh = s.planner.initial(B, SIZE)
    if [x.shape for x in tree.leaves(fresh)] != [x.shape for x in tree.leaves(s.plan)]:
        raise Broken("initial and a call give plans of different shapes; the caller keeps them in one place")


def stays_inside(s: Subject) -> None:
    far = Place(x=100 * s.state.x)
    with modules.seeded(1), torch.no_grad():
        plan, _ = s.decide(far, s.plan, s.first)
    action = plan.action
    if s.objective.action.kind == "continuous" and bool((action.abs() > 1).any()):
        raise Broken(f"an action is {float(action.abs().max()):.2f}; clamp to [-1, 1] after noise was added")
    if s.objective.action.kind == "discrete" and not torch.equal(action.sort(1).values, torch.eye(SIZE)[[2] * B]):
        raise Broken("an action is no one-hot; use torch.nn.functional.one_hot")


def forgets_by_row(s: Subject) -> None:
    """The same noise, once with nonsense in the plans of rows that begin."""
    nonsense = tree.map(lambda x: torch.full_like(x, torch.nan), s.plan)
    with modules.seeded(2), torch.no_grad():
        clean, _ = s.decide(s.state, tree.where(s.first, s.planner.initial(B, SIZE), s.plan), s.first)
    with modules.seeded(2), torch.no_grad():
        dirty, _ = s.decide(s.state, tree.where(s.first, nonsense, s.plan), s.first)
    gap = difference(clean, dirty)
    if gap:
        raise Broken(f"rows that begin see their old plan: {gap}; use torch.where(first, ..., ...), no product")


def rows_are_apart(s: Subject) -> None:
    with Still(), torch.no_grad():
        whole, told = s.decide(s.state, s.plan, s.first)
        alone, said = s.decide(
            tree.index(s.state, slice(1, 2)), tree.index(s.plan, slice(1, 2)), s.first[1:2]
        )
    gap = difference((alone, said["value"]), (tree.index(whole, slice(1, 2)), told["value"][1:2]))
    if gap:
        raise Broken(f"a row planned alone differs from the same row in a batch: {gap}; reduce over candidates alone")


def leaves_its_inputs(s: Subject) -> None:
    given = {"state": s.state, "plan": s.plan, "first": s.first}
    before = copied(given)
    with modules.seeded(3), torch.no_grad():
        s.decide(s.state, s.plan, s.first)
    touched = changed(before, given)
    if touched:
        raise Broken(f"a call changes its input in place ({modules.listed(touched)}); return new tensors")


def is_traced(s: Subject) -> None:
    with dynamo.patch(trace_autograd_ops=True):
        modules.traces(s.decide, s.state, s.plan, s.first, method="a call")


def refuses(s: Subject) -> None:
    """The other kind of action is a mistake of the user."""
    kind = "discrete" if s.objective.action.kind == "continuous" else "continuous"
    other = dataclasses.replace(s.objective, action=ActionSpec(kind=kind, size=SIZE))  # type: ignore[arg-type]
    try:
        with modules.seeded(0), torch.no_grad():
            s.planner(other, s.state, s.plan, s.first)
    except UserError:
        return
    raise Skip(f"it plans {kind} actions too")


CHECKS: tuple[Check[Subject], ...] = (
    Check("a planner is data", lambda s: modules.config_is_data(s.planner)),
    Check("plans for every row", plans, is_needed=True),
    Check("its plan fits itself", fits_itself),
    Check("actions stay inside", stays_inside),
    Check("first forgets, row by row", forgets_by_row),
    Check("a batch is its rows", rows_are_apart),
    Check("inputs are left alone", leaves_its_inputs),
    Check("same seed, same plan", lambda s: modules.repeats(lambda: s.decide(s.state, s.plan, s.first), "the planner")),
    Check("the other kind of action is refused", refuses),
    Check("one graph without a break", is_traced),
)
