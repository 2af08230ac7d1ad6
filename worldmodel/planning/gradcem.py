"""CEM whose samples climb the gradient before they are compared (Bharadhwaj et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.gradient import GRADIENT, slope
from worldmodel.planning.population import Info, best, blank, bounded, fits, moments, require, told, warm
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class GradCEM:
    """Elites stay in the population and keep climbing; the others are drawn again. Implements ``Planner``."""

    horizon: int = 12
    samples: int = 32
    elites: int = 8
    iterations: int = 5
    rate: float = 0.1
    """Size of a gradient step, in units of the action."""
    clip: float = 1.0
    """Largest norm of the gradient at each time step."""
    std: float = 0.5
    """Where the standard deviation begins."""
    min_std: float = 0.01

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples", "elites", "iterations")
        fits(elites=self.elites, samples=self.samples)

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Climb and refit ``iterations`` times; the first action of the best sequence."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        white = noise.normal(b, self.iterations, self.samples, self.horizon, a, like=plan.mean)
        mean = warm(plan.mean, first)
        std = torch.full_like(mean, self.std)
        weight = mean.new_full((b, self.elites), 1 / self.elites)
        elite, score, clamped = white[:, 0, :0], weight, weight[:, 0]
        for i in range(self.iterations):
            new = white[:, i, elite.shape[1] :]
            drawn, clamped = bounded(torch.cat([elite, mean.unsqueeze(1) + std.unsqueeze(1) * new], 1))
            _, gradient = slope(objective, state, drawn, self.clip)
            climbed = (drawn + self.rate * gradient).clamp(-1, 1)
            score = objective.score(state, climbed)
            elite = best(climbed, score, self.elites)[0]
            mean, width = moments(elite, weight)
            std = width.clamp(min=self.min_std)
        evaluations = self.iterations * self.samples * (GRADIENT + 1) * self.horizon
        plan = Plan(action=elite[:, 0, 0], mean=mean, std=std, kept=plan.kept)
        return plan, told(score, evaluations, clamped=clamped)
