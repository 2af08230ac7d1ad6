"""Predictive sampling (Howell et al. 2022, MuJoCo MPC): the best of noisy copies of the last plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, best, blank, bounded, require, told, warm
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class PredictiveSampling:
    """The last plan itself is among the candidates, so a plan is given up only for a better one. Implements
    ``Planner``."""

    horizon: int = 12
    samples: int = 64
    std: float = 0.3
    """Standard deviation of the noise, in units of the action."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples")

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """The first action of the best candidate."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        white = noise.normal(b, self.samples - 1, self.horizon, a, like=plan.mean)
        mean = warm(plan.mean, first).unsqueeze(1)
        population, clamped = bounded(torch.cat([mean, mean + self.std * white], 1))
        score = objective.score(state, population)
        mean = best(population, score, 1)[0][:, 0]
        plan = Plan(action=mean[:, 0], mean=mean, std=torch.full_like(mean, self.std), kept=plan.kept)
        return plan, told(score, self.samples * self.horizon, clamped=clamped)
