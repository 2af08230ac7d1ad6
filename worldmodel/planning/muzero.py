"""MuZero's tree search (Schrittwieser et al. 2020): PUCT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, blank
from worldmodel.planning.search import Node, Tree
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class MuZero:
    """The policy is the prior, the value judges leaves; the action most visited is taken. Nothing is carried over:
    every decision begins a new tree. ``Plan.mean`` (B, 1, A) holds shares of visits. Implements ``Planner``."""

    simulations: int = 50
    max_depth: int = 16
    c1: float = 1.25
    c2: float = 19652.0
    """Weights of the prior (appendix B, eq. 2)."""
    root_noise: float = 0.0
    """Share of Dirichlet noise in the root's prior: 0.25 while data is collected."""
    alpha: float = 0.3
    """Concentration of that noise."""
    temperature: float = 0.0
    """Actions are sampled by visits^(1 / temperature); 0 takes the most visited."""

    def __post_init__(self) -> None:
        check_range(self, 1, "simulations", "max_depth")

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, 1, action_size)

    @torch.no_grad()
    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Run ``simulations``, each one model step."""
        search = Tree(objective, state, first, self.simulations, self)
        b, a = plan.action.shape
        gumbel = noise.gumbel(b, a, like=plan.mean)
        if self.root_noise:
            alpha = torch.full((b, a), self.alpha, device=plan.mean.device)
            stray = Dirichlet(alpha, validate_args=False).sample()
            prior = torch.lerp(search.logits[:, 0].softmax(-1), stray, self.root_noise)
            search.logits[:, 0] = prior.clamp(min=1e-20).log()
        for i in range(self.simulations):
            search.simulate(i, self.rule, self.rule, self.max_depth)
        root = search.root()
        share = root.visits / root.visits.sum(1, keepdim=True)
        sharp = share.log() / self.temperature + gumbel if self.temperature else share
        action = F.one_hot(sharp.argmax(1), a).float()
        plan = Plan(action=action, mean=share[:, None], std=torch.zeros_like(plan.std), kept=plan.kept)
        return plan, {"value": root.value, "evaluations": share.new_full((), float(self.simulations))}

    def rule(self, node: Node) -> Tensor:
        """(B, A) eq. 2, with values rescaled among the node and its visited children; unvisited ones count as worst."""
        seen = node.visits > 0
        low = torch.minimum(torch.where(seen, node.q, torch.inf).amin(1), node.value)[:, None]
        high = torch.maximum(torch.where(seen, node.q, -torch.inf).amax(1), node.value)[:, None]
        q = torch.where(seen, (node.q - low) / (high - low).clamp(min=1e-8), 0.0)
        total = node.visits.sum(1, keepdim=True)
        weight = total.sqrt() * (self.c1 + torch.log((total + self.c2 + 1) / self.c2))
        return q + node.logits.softmax(-1) * weight.clamp(min=1e-8) / (1 + node.visits)
