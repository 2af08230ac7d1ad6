"""What every layer has in common: the contestants, episodes of many rows at once, and what a row of results says."""

from __future__ import annotations

import dataclasses
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel import presets, tree
from worldmodel.errors import UserError, unknown
from worldmodel.planning.objectives import WORST
from worldmodel.planning.population import blank
from worldmodel.protocols import PlanningObjective
from worldmodel.rng import Stream
from worldmodel.types import Plan

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What every measurement is given."""

    planners: tuple[str, ...] = ()
    """Names or FILE:NAME; empty: all shipped ones that fit."""
    budgets: tuple[int, ...] = (100, 500)
    """Trajectories that a decision may look at."""
    seeds: int = 5
    """Seeds of planners. Starts are the same for all."""
    episodes: int = 10
    """Starts."""
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        for name in ("seeds", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.budgets or min(self.budgets) < 4:
            raise ValueError(f"--budgets must be at least 4 trajectories each, got {list(self.budgets)}")

    def names(self, kind: str, *, policy: bool = False, value: bool = False, gradient: bool = True) -> list[str]:
        """Planners for one kind of actions, and for what there is besides a model; a user's own always.

        Raises: UserError for one that does not exist.
        """
        for name in self.planners:
            if ":" not in name and name not in presets.planners():
                raise UserError(unknown("planner", name, presets.planners()))
        table: Any = presets.load_module("worldmodel.configs.planners")
        fit = [
            name for name in (table.CONTINUOUS if kind == "continuous" else table.DISCRETE)
            if (policy or name not in table.NEEDS_POLICY) and (value or name not in table.NEEDS_VALUE)
            and (gradient or name not in table.NEEDS_GRADIENT)
        ]
        if not self.planners:
            return fit
        return [name for name in self.planners if name in fit or name not in presets.planners()]


def contestant(name: str, budget: int, horizon: int | None) -> Any:
    """The planner of that name."""
    return presets.find_planner(name, trajectories=budget, **({"horizon": horizon} if horizon else {}))


class World(Protocol):
    """Rows that are lived through: an analytic model, or environments and their truth."""

    def start(self) -> Any:
        """The states (R, ...) that all rows begin in."""
        ...

    def live(self, state: Any, action: Tensor) -> tuple[Any, np.ndarray, np.ndarray]:
        """After (R, A): the next states, reward (R,) and continues (R,), which is 0 for good after an end."""
        ...


def play(planner: Any, objective: PlanningObjective[Any], world: World, *, steps: int, seeds: int) -> Row:
    """Episodes of ``steps`` decisions in rows (seed, start) side by side, and what a row of results says of them.

    Raises: UserError where the planner cannot serve the objective.
    """
    state = world.start()
    rows, size = tree.leaves(state)[0].shape[0], objective.action.size
    plan, first = planner.initial(rows, size), torch.ones(rows, dtype=torch.bool)
    total, alive = np.zeros(rows), np.ones(rows)
    counts = {"clamped": [], "lost": [], "ms": []}
    evaluations, most, is_finite = 0.0, 0.0, np.ones(rows, bool)
    # one stream: rows of another seed draw other numbers of it
    with Stream(seed=seeds), torch.no_grad():
        for _ in range(steps):
            began = time.perf_counter()
            plan, told = planner(objective, state, plan, first)
            counts["ms"].append((time.perf_counter() - began) * 1e3)
            counts["clamped"].append(float(told["clamped"].mean()) if "clamped" in told else 0.0)
            counts["lost"].append(float((told["value"] <= WORST).float().mean()))
            evaluations = float(told["evaluations"])
            action = plan.action
            is_finite &= action.isfinite().all(-1).numpy()
            most = max(most, float(torch.nan_to_num(action).abs().max()))
            state, reward, continues = world.live(state, torch.nan_to_num(action))
            total, alive = total + alive * reward, alive * continues
            first = torch.zeros_like(first)
    alone = one_call(planner, objective, tree.index(world.start(), slice(0, 1)), size)
    return {
        "returns": total.reshape(seeds, -1).round(6).tolist(), "alive": float(alive.mean()), "decisions": steps,
        "evaluations": evaluations, "ms": round(alone, 4), "ms_together": round(statistics.median(counts["ms"]), 4),
        "rows": rows, "clamped": round(float(np.mean(counts["clamped"])), 4),
        "lost": round(float(np.mean(counts["lost"])), 6), "not_finite": float((~is_finite).mean()),
        "largest_action": round(most, 6),
    }


def one_call(planner: Any, objective: PlanningObjective[Any], state: Any, size: int, *, calls: int = 7) -> float:
    """Median milliseconds of a decision for one environment that goes on with its plan."""
    plan, times = planner.initial(1, size), []
    with Stream(seed=0), torch.no_grad():
        for call in range(calls + 1):
            began = time.perf_counter()
            plan, _ = planner(objective, state, plan, torch.tensor([call == 0]))
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[1:])


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The baseline of every score: uniformly random actions. A planner that does not look."""

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, 1, action_size)

    def __call__(
        self, objective: PlanningObjective[Any], state: Any, plan: Plan, first: Tensor
    ) -> tuple[Plan, dict[str, Tensor]]:
        """Draws, and tells that it looked at nothing."""
        shape = plan.action.shape
        if objective.action.kind == "discrete":
            action = torch.eye(shape[1])[torch.randint(shape[1], shape[:1])]
        else:
            action = 2 * torch.rand(shape) - 1
        told = {"value": torch.zeros(shape[0]), "evaluations": torch.zeros(())}
        return dataclasses.replace(plan, action=action), told


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """A row, or the sentence why there is none. What a planner raises besides is shown, and costs its row alone: such a
    row is ``broken``."""
    try:
        return row | measure()
    except UserError as error:
        return row | {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return row | {"error": f"{type(error).__name__}: {error}", "broken": True}
