"""iCEM (Pinneri et al. 2020): CEM with coloured noise that does not forget its elites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, best, blank, bounded, fits, moments, require, told, warm
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class ICEM:
    """Noise correlated in time, populations that shrink, elites kept within and between decisions, the mean itself in
    the last population, the best sample executed. Implements ``Planner``."""

    horizon: int = 30
    samples: int = 40
    elites: int = 10
    iterations: int = 3
    std: float = 0.5
    """Where the standard deviation begins."""
    momentum: float = 0.1
    """Share of the old mean and standard deviation that a refit keeps, in [0, 1)."""
    exponent: float = 2.0
    """Power of noise falls as frequency^-exponent; 0 is white."""
    decay: float = 1.25
    """Each iteration draws this many times fewer samples, but never below two for each elite."""
    keep: float = 0.3
    """Share of the elites that is kept, best first."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples", "elites", "iterations", "decay")
        fits(elites=self.elites, samples=self.samples)
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep must be in [0, 1], got {self.keep}")

    @property
    def kept(self) -> int:
        """How many elites are kept."""
        return round(self.keep * self.elites)

    def sizes(self) -> list[int]:
        """New samples of each iteration."""
        least = min(self.samples, 2 * self.elites)
        return [max(least, int(self.samples / self.decay**i)) for i in range(self.iterations)]

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size, kept=self.kept)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Refit ``iterations`` times; the first action of the best sequence."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        sizes = self.sizes()
        drawn = noise.coloured(
            noise.normal(b, sum(sizes) + self.kept, self.horizon, a, like=plan.mean), self.exponent
        )
        spare, *rest = drawn.split([self.kept, *sizes], 1)
        mean = warm(plan.mean, first)
        std = torch.full_like(mean, self.std)
        # the last slot of a shifted elite is new; a row that begins has no elites and takes samples in their place
        shifted = warm(plan.kept, first)
        shifted = torch.cat([shifted[..., :-1, :], self.std * spare[..., -1:, :]], -2)
        kept = torch.where(first[:, None, None, None], self.std * spare, shifted)
        weight = mean.new_full((b, self.elites), 1 / self.elites)
        evaluations, score, elite, clamped = 0, weight, kept, weight[:, 0]
        for i, white in enumerate(rest):
            added = [kept, mean.unsqueeze(1)] if i == self.iterations - 1 else [kept]
            population, clamped = bounded(torch.cat([mean.unsqueeze(1) + std.unsqueeze(1) * white, *added], 1))
            score = objective.score(state, population)
            elite = best(population, score, self.elites)[0]
            kept = elite[:, : self.kept]
            fresh, width = moments(elite, weight)
            mean, std = torch.lerp(fresh, mean, self.momentum), torch.lerp(width, std, self.momentum)
            evaluations += population.shape[1] * self.horizon
        return Plan(action=elite[:, 0, 0], mean=mean, std=std, kept=kept), told(score, evaluations, clamped=clamped)
