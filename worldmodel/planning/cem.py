"""The cross-entropy method (Rubinstein 1999; PETS, PlaNet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, best, blank, bounded, fits, moments, require, told, warm
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class CEM:
    """A Gaussian over sequences, refitted to the best of its samples. Implements ``Planner``."""

    horizon: int = 12
    samples: int = 400
    elites: int = 40
    iterations: int = 5
    std: float = 0.5
    """Where the standard deviation begins."""
    min_std: float = 0.01
    momentum: float = 0.1
    """Share of the old mean and standard deviation that a refit keeps, in [0, 1)."""
    select: Literal["mean", "best"] = "mean"
    """What is executed: the final mean, or the best sample of the last iteration."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples", "elites", "iterations")
        fits(elites=self.elites, samples=self.samples)

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Refit ``iterations`` times."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        white = noise.normal(b, self.iterations, self.samples, self.horizon, a, like=plan.mean)
        mean = warm(plan.mean, first)
        std = torch.full_like(mean, self.std)
        weight = mean.new_full((b, self.elites), 1 / self.elites)
        score, elite, clamped = weight, white[:, 0], weight[:, 0]
        for i in range(self.iterations):
            population, clamped = bounded(mean.unsqueeze(1) + std.unsqueeze(1) * white[:, i])
            score = objective.score(state, population)
            elite = best(population, score, self.elites)[0]
            fresh, width = moments(elite, weight)
            mean = torch.lerp(fresh, mean, self.momentum)
            std = torch.lerp(width, std, self.momentum).clamp(min=self.min_std)
        chosen = mean if self.select == "mean" else elite[:, 0]
        plan = Plan(action=chosen[:, 0], mean=mean, std=std, kept=plan.kept)
        return plan, told(score, self.iterations * self.samples * self.horizon, clamped=clamped)
