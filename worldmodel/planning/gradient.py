"""Planning by gradient: ascend the predicted return through the model (Grad-MPC, 2023; hybrid with a policy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.errors import UserError, check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, best, blank, bounded, require, told, warm
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")

GRADIENT = 3
"""What one model step with its gradient counts, in steps without."""


@dataclass(frozen=True, kw_only=True)
class GradientPlanner:
    """Several sequences climb side by side, and the best one ever seen is taken. Implements ``Planner``.

    ``policy_restarts`` equal to ``restarts`` is the hybrid: the policy proposes, the gradient refines. To trace a call
    as one graph, set ``torch._dynamo.config.trace_autograd_ops``.
    """

    horizon: int = 12
    restarts: int = 16
    policy_restarts: int = 0
    """How many of them begin where the policy would go; the others begin around the last plan."""
    steps: int = 10
    optimiser: Literal["adam", "sgd"] = "adam"
    rate: float = 0.1
    """Step size, in units of the action."""
    clip: float = 1.0
    """Largest norm of the gradient at each time step."""
    std: float = 0.3
    """Standard deviation of the starts around the last plan; one of them is the plan itself."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon", "restarts", "steps")
        if not 0 <= self.policy_restarts <= self.restarts:
            raise ValueError(
                f"policy_restarts are part of restarts, so they must be from 0 to {self.restarts}, got "
                f"{self.policy_restarts}"
            )

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Climb ``steps`` times."""
        require(objective, "continuous", self)
        b, a = plan.action.shape
        around = self.restarts - self.policy_restarts
        white = noise.normal(b, around, self.horizon, a, like=plan.mean)
        spread = torch.full((around, 1, 1), self.std, device=white.device)
        spread[:1] = 0
        x, clamped = bounded(warm(plan.mean, first).unsqueeze(1) + spread * white)
        if self.policy_restarts:
            x = torch.cat([objective.propose(state, self.policy_restarts, self.horizon), x], 1)
        top, height = x, x.new_full((b, self.restarts), -torch.inf)
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(self.steps):
            score, gradient = slope(objective, state, x, self.clip)
            top, height = torch.where((score > height)[..., None, None], x, top), torch.maximum(score, height)
            if self.optimiser == "adam":
                mean, square = torch.lerp(gradient, mean, 0.9), torch.lerp(gradient.square(), square, 0.999)
                gradient = mean / (1 - 0.9 ** (i + 1)) / ((square / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
            x = (x + self.rate * gradient).clamp(-1, 1)
        score = objective.score(state, x)
        top, height = torch.where((score > height)[..., None, None], x, top), torch.maximum(score, height)
        sequence = best(top, height, 1)[0][:, 0]
        evaluations = (self.policy_restarts + self.restarts * (GRADIENT * self.steps + 1)) * self.horizon
        plan = Plan(action=sequence[:, 0], mean=sequence, std=torch.zeros_like(sequence), kept=plan.kept)
        return plan, told(height, evaluations, clamped=clamped)


def slope(objective: PlanningObjective[S], state: S, candidates: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Scores (B, N) of candidates (B, N, H, A), and their gradient, its norm at each time step at most ``clip``.

    A candidate whose gradient is not finite stays where it is. No parameter gets a gradient. Raises UserError where
    the score is no differentiable function of actions.
    """
    with torch.enable_grad():
        x = candidates.detach().requires_grad_()
        score = objective.score(tree.detach(state), x)
        if not score.requires_grad:
            raise UserError(
                "this planner climbs the gradient of the predicted return, and here it has none: rewards and ends are "
                "steps of the state; take a planner that samples, such as icem or mppi"
            )
        (gradient,) = torch.autograd.grad(score.sum(), x)
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    norm = gradient.norm(dim=-1, keepdim=True)
    return score.detach(), gradient * (clip / norm.clamp(min=clip))
