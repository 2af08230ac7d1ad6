"""CEM over discrete actions: independent categoricals, refitted to the best of their samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, best, blank, fits, proposed, require, told
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class CategoricalCEM:
    """Actions are one-hot; ``Plan.mean`` holds probabilities. Implements ``Planner``."""

    horizon: int = 12
    samples: int = 400
    """Candidates an iteration, those of the policy included."""
    policy_samples: int = 0
    """Sequences sampled from the policy, once, that stay in every iteration's population."""
    elites: int = 40
    iterations: int = 5
    momentum: float = 0.1
    """Share of the old probabilities that a refit keeps, in [0, 1)."""
    floor: float = 0.02
    """Share of the uniform distribution in every refit, so that no action is lost for good."""
    select: Literal["mean", "best", "sample"] = "mean"
    """What is executed: the most probable action, that of the best sample of the last iteration, or, while data is
    collected, one drawn from the probabilities."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples", "elites", "iterations")
        fits(elites=self.elites, samples=self.samples, policy_samples=self.policy_samples)

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Refit ``iterations`` times."""
        require(objective, "discrete", self)
        b, a = plan.action.shape
        drawn = self.samples - self.policy_samples
        gumbel = noise.gumbel(b, self.iterations, drawn, self.horizon, a, like=plan.mean)
        last = noise.gumbel(b, a, like=plan.mean)
        fixed = proposed(objective, state, self.policy_samples, self.horizon, like=plan.mean)
        uniform = torch.full_like(plan.mean, 1 / a)
        moved = torch.cat([plan.mean[:, 1:], uniform[:, :1]], 1)
        probs = torch.where(first[:, None, None], uniform, moved)
        score, elite = probs[:, :, 0], probs.unsqueeze(1)
        for i in range(self.iterations):
            index = (probs.clamp(min=1e-20).log().unsqueeze(1) + gumbel[:, i]).argmax(-1)
            population = torch.cat([fixed, F.one_hot(index, a).float()], 1)
            score = objective.score(state, population)
            elite = best(population, score, self.elites)[0]
            probs = torch.lerp(elite.mean(1), probs, self.momentum)
            probs = torch.lerp(probs, uniform, self.floor)
        logits = probs[:, 0].log() + last if self.select == "sample" else probs[:, 0]
        chosen = elite[:, 0, 0] if self.select == "best" else F.one_hot(logits.argmax(-1), a).float()
        plan = Plan(action=chosen, mean=probs, std=(probs * (1 - probs)).sqrt(), kept=plan.kept)
        return plan, told(score, (self.policy_samples + self.iterations * self.samples) * self.horizon)
