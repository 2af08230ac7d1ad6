"""Random shooting: the best of sequences drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, best, blank, require, told
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """Uniform in [-1, 1], one population, nothing carried over. Implements ``Planner``."""

    horizon: int = 12
    samples: int = 512

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples")

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """The first action of the best sequence."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        population = 2 * noise.uniform(b, self.samples, self.horizon, a, like=plan.mean) - 1
        score = objective.score(state, population)
        mean = best(population, score, 1)[0][:, 0]
        plan = Plan(action=mean[:, 0], mean=mean, std=torch.zeros_like(mean), kept=plan.kept)
        return plan, told(score, self.samples * self.horizon)
