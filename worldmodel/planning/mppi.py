"""Model predictive path integral control (Williams et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, blank, bounded, moments, require, told, warm
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class MPPI:
    """A mean moved to the softmax-weighted average of its noisy copies; the noise has a fixed size. Implements
    ``Planner``."""

    horizon: int = 15
    samples: int = 512
    iterations: int = 1
    std: float = 0.5
    """Standard deviation of the noise, in units of the action."""
    temperature: float = 0.1
    """Scores are divided by this (lambda of the paper), so it has the unit of a return. Not TD-MPC2's, which
    multiplies."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples", "iterations")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """The first action of the mean."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        white = noise.normal(b, self.iterations, self.samples, self.horizon, a, like=plan.mean)
        mean = warm(plan.mean, first)
        score, clamped = mean[:, 0], mean[:, 0, 0]
        for i in range(self.iterations):
            population, clamped = bounded(mean.unsqueeze(1) + self.std * white[:, i])
            score = objective.score(state, population)
            mean, _ = moments(population, torch.softmax(score / self.temperature, 1))
        plan = Plan(action=mean[:, 0], mean=mean, std=torch.full_like(mean, self.std), kept=plan.kept)
        return plan, told(score, self.iterations * self.samples * self.horizon, clamped=clamped)
