"""A batched search tree over a few actions at each node: arrays of a fixed size, one new node a simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.errors import UserError
from worldmodel.planning.population import require
from worldmodel.protocols import PlanningObjective

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a selection rule sees of the nodes where the rows stand, K actions each."""

    logits: Tensor
    """(B, K) of the prior."""
    visits: Tensor
    """(B, K) of each action."""
    q: Tensor
    """(B, K) r + discount c V(child); anything where there is no visit."""
    raw: Tensor
    """(B,) what the value function says."""
    value: Tensor
    """(B,) mean of all returns from here."""


Rule = Callable[[Node], Tensor]
"""Scores (B, K) of a node's actions; the largest is taken."""

Draw = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (B, F) to the actions of a node (B, K, A) and the logits of their prior (B, K)."""


class Tree(Generic[S]):
    """Search from ``state`` (B, ...). Node 0 is the root; a node's reward belongs to arriving in it.

    A node's actions are all there are, where these are discrete, or a few that are drawn when it is made.
    """

    def __init__(
        self, objective: PlanningObjective[S], state: S, first: Tensor, simulations: int, planner: object,
        draw: Draw | None = None,
    ) -> None:
        """Args: draw, for continuous actions, gives the actions of a node.
        Raises: UserError where actions are of the other kind, or there is no value to judge leaves by."""
        require(objective, "continuous" if draw else "discrete", planner)
        if objective.value is None:
            raise UserError(
                f"{type(planner).__name__} judges leaves by a value, and the objective has none; hand over value=, for "
                f"instance an agent's critic"
            )
        self.objective, self.simulations = objective, simulations
        self.draw = draw or self._every
        b, a, device = first.shape[0], objective.action.size, first.device
        features = objective.model.features(state)
        root = self.draw(features)
        k = root[1].shape[1]
        self.rows = torch.arange(b, device=device)
        shape = (b, simulations + 1)
        self.states = tree.map(lambda x: x.unsqueeze(1).repeat(1, shape[1], *[1] * (x.ndim - 1)), state)
        self.children = torch.full((*shape, k), -1, device=device)
        self.visits = torch.zeros((*shape, k), device=device)
        self.reward, self.alive, self.raw, self.total, self.count = torch.zeros((5, *shape), device=device).unbind(0)
        self.logits = torch.zeros((*shape, k), device=device)
        self.actions = torch.zeros((*shape, k, a), device=device)
        self._judge(features, root, torch.zeros_like(self.rows))
        self.total[:, 0], self.count[:, 0] = self.raw[:, 0], 1

    def node(self, index: Tensor) -> Node:
        """The nodes (B,)."""
        children = self.children[self.rows, index]
        safe = children.clamp(min=0)
        value = self.total.gather(1, safe) / self.count.gather(1, safe).clamp(min=1)
        return Node(
            logits=self.logits[self.rows, index], visits=self.visits[self.rows, index],
            q=self.reward.gather(1, safe) + self.alive.gather(1, safe) * value, raw=self.raw[self.rows, index],
            value=self.total[self.rows, index] / self.count[self.rows, index].clamp(min=1),
        )

    def root(self) -> Node:
        """Where the search began."""
        return self.node(torch.zeros_like(self.rows))

    def simulate(self, i: int, at_root: Rule, below: Rule, max_depth: int) -> None:
        """Simulation ``i``: walk down to an action never tried, or ``max_depth`` deep; judge; tell all on the way."""
        index, going = torch.zeros_like(self.rows), torch.ones_like(self.rows, dtype=torch.bool)
        parent, action = index, index
        path: list[tuple[Tensor, Tensor, Tensor]] = []
        for depth in range(min(i + 1, max_depth)):
            choice = (below if depth else at_root)(self.node(index)).argmax(1)
            parent, action = torch.where(going, index, parent), torch.where(going, choice, action)
            path.append((parent, action, going))
            child = self.children[self.rows, parent, action]
            going = going & (child >= 0)
            index = torch.where(going, child, index)
        existing = self.children[self.rows, parent, action]
        leaf = torch.where(existing >= 0, existing, i + 1)
        self._expand(parent, action, leaf)
        # the leaf first, then every node on the way up to the root
        gain = self.raw[self.rows, leaf]
        self.total[self.rows, leaf] += gain
        self.count[self.rows, leaf] += 1
        for at, chosen, walked in reversed(path):
            child = self.children[self.rows, at, chosen]
            up = self.reward[self.rows, child] + self.alive[self.rows, child] * gain
            gain = torch.where(walked, up, gain)
            self.total[self.rows, at] += torch.where(walked, gain, 0.0)
            self.count[self.rows, at] += walked.float()
            self.visits[self.rows, at, chosen] += walked.float()

    def _expand(self, parent: Tensor, action: Tensor, leaf: Tensor) -> None:
        model = self.objective.model
        before = tree.index(self.states, (self.rows, parent))
        taken = self.actions[self.rows, parent, action]
        state = model.step(before, taken)
        prediction = model.predict(before, taken, state)
        self.children[self.rows, parent, action] = leaf
        for held, x in zip(tree.leaves(self.states), tree.leaves(state)):
            held[self.rows, leaf] = x
        self.reward[self.rows, leaf] = prediction.reward.float()
        self.alive[self.rows, leaf] = self.objective.discount * prediction.continues.float()
        features = model.features(state)
        self._judge(features, self.draw(features), leaf)

    def _judge(self, features: Tensor, drawn: tuple[Tensor, Tensor], index: Tensor) -> None:
        assert self.objective.value is not None
        self.raw[self.rows, index] = self.objective.value(features).float()
        self.actions[self.rows, index], self.logits[self.rows, index] = drawn

    def _every(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """All discrete actions, and what the policy thinks of them."""
        b, a = features.shape[0], self.objective.action.size
        every = torch.eye(a, device=features.device).expand(b, a, a)
        return every, log_prior(self.objective, features, every)


def log_prior(objective: PlanningObjective[Any], features: Tensor, action: Tensor) -> Tensor:
    """Log-probability of actions (B, K, A) under the policy at features (B, F), (B, K) float32; 0 without one."""
    if objective.policy is None:
        return torch.zeros(action.shape[:-1], device=action.device)
    prior = objective.policy(features.unsqueeze(1).expand(-1, action.shape[1], -1))
    return prior.log_prob(action).float()
