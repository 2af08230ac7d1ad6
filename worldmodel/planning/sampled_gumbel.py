"""Gumbel MuZero over a few sampled actions (Sampled MuZero, Hubert et al. 2021; EfficientZero V2, Wang et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.gumbel import GumbelMuZero
from worldmodel.planning.population import Info, blank
from worldmodel.planning.search import Tree, log_prior
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class SampledGumbelMuZero:
    """Every node has a few actions of its own, most of them drawn from the policy, the others anywhere in [-1, 1]; the
    prior of each is its density under the policy over that under the mixture it was drawn from (Sampled MuZero, eq. 5).
    ``Plan.mean`` and ``std`` (B, 1, A) are the moments of the improved policy. Implements ``Planner``."""

    simulations: int = 32
    actions: int = 16
    """K, actions of a node."""
    anywhere: int = 4
    """How many of them are drawn uniformly; all of them where the objective has no policy."""
    considered: int = 16
    """How many actions compete at the root, at most."""
    max_depth: int = 5
    visit_offset: float = 50.0
    value_scale: float = 0.1
    """As in ``GumbelMuZero``."""
    gumbel_scale: float = 1.0
    """1 while data is collected, 0 in evaluation."""

    def __post_init__(self) -> None:
        check_range(self, 1, "simulations", "actions", "considered", "max_depth")
        if not 0 <= self.anywhere <= self.actions:
            raise ValueError(
                f"anywhere is part of actions, so it must be from 0 to {self.actions}, got {self.anywhere}"
            )

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, 1, action_size)

    @torch.no_grad()
    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Run ``simulations``, each one model step."""

        def draw(features: Tensor) -> tuple[Tensor, Tensor]:
            return self.draw(objective, features)

        search = Tree(objective, state, first, self.simulations, self, draw)
        gumbel = self.gumbel_scale * noise.gumbel(first.shape[0], self.actions, like=plan.mean)
        halving = GumbelMuZero(
            simulations=self.simulations, considered=self.considered, max_depth=self.max_depth,
            visit_offset=self.visit_offset, value_scale=self.value_scale,
        )
        choice, improved = halving.compete(search, gumbel)
        actions, weight = search.actions[:, 0], improved.unsqueeze(-1)
        mean = (weight * actions).sum(1)
        std = (weight * (actions - mean.unsqueeze(1)).square()).sum(1).sqrt()
        plan = Plan(
            action=actions[search.rows, choice], mean=mean.clamp(-1, 1).unsqueeze(1), std=std.unsqueeze(1),
            kept=plan.kept,
        )
        return plan, {"value": search.root().value, "evaluations": weight.new_full((), float(self.simulations))}

    def draw(self, objective: PlanningObjective[S], features: Tensor) -> tuple[Tensor, Tensor]:
        """A node's actions (B, K, A) at features (B, F), and the logits of their prior (B, K)."""
        b, size, policy = features.shape[0], objective.action.size, objective.policy
        stray = self.anywhere if policy is not None else self.actions
        actions = 2 * noise.uniform(b, stray, size, like=features) - 1
        if policy is None:
            return actions, torch.zeros(b, stray, device=features.device)
        chosen = policy(features.unsqueeze(1).expand(-1, self.actions - stray, -1)).sample().clamp(-1, 1)
        actions = torch.cat([chosen.float(), actions], 1)
        density, share = log_prior(objective, features, actions), stray / self.actions
        if not share:
            return actions, torch.zeros_like(density)
        # log pi - log((1 - share) pi + share / 2^A), so that a narrow policy and a wide one are weighed alike
        uniform = torch.full_like(density, math.log(share) - size * math.log(2))
        own = density + math.log1p(-share) if share < 1 else torch.full_like(density, -torch.inf)
        return actions, density - torch.logaddexp(own, uniform)
