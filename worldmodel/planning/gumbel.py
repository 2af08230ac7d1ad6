"""Gumbel MuZero (Danihelka et al. 2022): a tree search that improves the policy with few simulations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.errors import check_range
from worldmodel.planning import noise
from worldmodel.planning.population import Info, blank
from worldmodel.planning.search import Node, Tree
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class GumbelMuZero:
    """Actions drawn without replacement from the policy compete at the root by sequential halving. ``Plan.mean``
    (B, 1, A) is the improved policy, what a policy would be trained on. Implements ``Planner``."""

    simulations: int = 16
    considered: int = 16
    """How many actions compete at the root, at most."""
    max_depth: int = 16
    visit_offset: float = 50.0
    value_scale: float = 0.1
    """sigma(q) = (visit_offset + max visits) value_scale q (eq. 8)."""
    gumbel_scale: float = 1.0
    """1 while data is collected, 0 in evaluation."""

    def __post_init__(self) -> None:
        check_range(self, 1, "simulations", "considered", "max_depth")

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, 1, action_size)

    @torch.no_grad()
    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """Run ``simulations``, each one model step."""
        search = Tree(objective, state, first, self.simulations, self)
        gumbel = self.gumbel_scale * noise.gumbel(*plan.action.shape, like=plan.mean)
        choice, improved = self.compete(search, gumbel)
        action = F.one_hot(choice, plan.action.shape[1]).float()
        plan = Plan(action=action, mean=improved[:, None], std=torch.zeros_like(plan.std), kept=plan.kept)
        return plan, {"value": search.root().value, "evaluations": improved.new_full((), float(self.simulations))}

    def compete(self, search: Tree[Any], gumbel: Tensor) -> tuple[Tensor, Tensor]:
        """Run the simulations: the action (B,) that is left, by number, and the improved policy (B, K)."""

        def at_root(wanted: float | Tensor) -> Tensor:
            """g + logits + sigma(q) of the actions that were visited that often, eq. 8."""
            root = search.root()
            fitting = root.visits == wanted
            # a row whose prior excludes so many actions that none fits goes on with any
            score = gumbel + root.logits + self.sigma(root)
            return torch.where(fitting, score, score - 1e9)

        for i, wanted in enumerate(schedule(min(self.considered, gumbel.shape[1]), self.simulations)):
            search.simulate(i, lambda _, wanted=wanted: at_root(wanted), self.below, self.max_depth)
        root = search.root()
        improved = torch.softmax(root.logits + self.sigma(root), -1)
        return at_root(root.visits.amax(1, keepdim=True)).argmax(1), improved

    def below(self, node: Node) -> Tensor:
        """(B, A) below the root: follow the improved policy as closely as visits can, eq. 14."""
        improved = torch.softmax(node.logits + self.sigma(node), -1)
        return improved - node.visits / (1 + node.visits.sum(1, keepdim=True))

    def sigma(self, node: Node) -> Tensor:
        """(B, A) of completed values: unvisited actions have the mixed value (eq. 33), all are rescaled to [0, 1]."""
        seen = node.visits > 0
        prior = torch.where(seen, node.logits.softmax(-1), 0.0)
        visits = node.visits.sum(1)
        mean = (prior * node.q).sum(1) / prior.sum(1).clamp(min=1e-20)
        mixed = (node.raw + visits * mean) / (1 + visits)
        q = torch.where(seen, node.q, mixed[:, None])
        low, high = q.amin(1, keepdim=True), q.amax(1, keepdim=True)
        scaled = (q - low) / (high - low).clamp(min=1e-8)
        return (self.visit_offset + node.visits.amax(1, keepdim=True)) * self.value_scale * scaled


def schedule(actions: int, simulations: int) -> list[int]:
    """By simulation, how many visits the action it takes at the root shall have: sequential halving.

    >>> schedule(4, 8)
    [0, 0, 0, 0, 1, 1, 2, 2]
    """
    if actions == 1:
        return list(range(simulations))
    rounds, order, done, left = math.ceil(math.log2(actions)), [], 0, actions
    while len(order) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            order += [done] * left
            done += 1
        left = max(2, left // 2)
    return order[:simulations]
