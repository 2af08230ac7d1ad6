"""The planner of TD-MPC2 (Hansen et al. 2024): MPPI over elites, seeded by the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, best, blank, bounded, fits, moments, proposed, require, told, warm
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class PolicyMPPI:
    """Defaults are TD-MPC2's (its config.yaml); actions of 20 numbers and more take 8 iterations there. Implements
    ``Planner``."""

    horizon: int = 3
    samples: int = 512
    """Candidates an iteration, those of the policy included."""
    policy_samples: int = 24
    """Sequences sampled from the policy, once, that stay in every iteration's population."""
    elites: int = 64
    iterations: int = 6
    temperature: float = 0.5
    """Scores of elites are *multiplied* by this: larger is greedier."""
    momentum: float = 0.0
    """Share of the old mean that stays in a refit (TD-MPC: 0.1)."""
    min_std: float = 0.05
    """Floor of the standard deviation; an agent may put a () tensor in its place that changes while it learns."""
    max_std: float = 2.0
    """Where the standard deviation begins, and its ceiling."""
    select: Literal["sample", "best", "mean"] = "sample"
    """What is executed: an elite sampled by weight (TD-MPC2, also when it evaluates), the best elite
    (EfficientTDMPC), or the mean (BMPC)."""
    exploration: float = 0.0
    """Noise on the executed action in units of the plan's standard deviation: 1 while data is collected, 0 in
    evaluation."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "samples", "elites", "iterations")
        check_range(self, 0, "momentum", high=1)
        fits(elites=self.elites, samples=self.samples, policy_samples=self.policy_samples)

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Refit ``iterations`` times, then execute what ``select`` says."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        drawn = self.samples - self.policy_samples
        white = noise.normal(b, self.iterations, drawn, self.horizon, a, like=plan.mean)
        gumbel = noise.gumbel(b, self.elites, like=plan.mean)
        last = noise.normal(b, a, like=plan.mean)
        fixed = proposed(objective, state, self.policy_samples, self.horizon, like=plan.mean)
        mean = warm(plan.mean, first)
        std = torch.full_like(mean, self.max_std)
        score, elite, weight, index, clamped = last, fixed, gumbel, gumbel, last[:, 0]
        for i in range(self.iterations):
            sampled, clamped = bounded(mean.unsqueeze(1) + std.unsqueeze(1) * white[:, i])
            population = torch.cat([fixed, sampled], 1)
            score = objective.score(state, population)
            elite, value, index = best(population, score, self.elites)
            weight = elite_weights(value, self.temperature)
            fresh, std = moments(elite, weight)
            mean = torch.lerp(fresh, mean, self.momentum)
            std = std.clamp(max=self.max_std).clamp(min=self.min_std)
        if self.select == "sample":
            chosen = elite[torch.arange(b, device=elite.device), (weight.log() + gumbel).argmax(1)]
        else:
            chosen = elite[:, 0] if self.select == "best" else mean
        action = (chosen[:, 0] + self.exploration * std[:, 0] * last).clamp(-1, 1)
        evaluations = (self.policy_samples + self.iterations * self.samples) * self.horizon
        policy_elites = (index < self.policy_samples).float().mean(1)
        told_ = told(score, evaluations, clamped=clamped, policy_elites=policy_elites)
        return Plan(action=action, mean=mean, std=std, kept=plan.kept), told_


def elite_weights(value: Tensor, temperature: float) -> Tensor:
    """(B, K) proportional to exp(temperature * (value - max value)).

    >>> elite_weights(torch.tensor([[1.0, 0.0, -1.0]]), 0.5)
    tensor([[0.5065, 0.3072, 0.1863]])
    """
    return torch.softmax(temperature * value, 1)
