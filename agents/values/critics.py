"""Ensembles of Q-functions that answer pessimistically: SAC's two, REDQ's draw, EDAC's diverse ones, RAVL's many."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.errors import check_range
from worldmodel.nn.ensemble import EnsembleMLP, edac_start, uniform
from worldmodel.nn.normed import Standardise
from worldmodel.nn.slow import follow_
from worldmodel.types import ActionSpec


@dataclass(frozen=True, kw_only=True)
class CriticsConfig:
    """N networks of one shape, in one batched product a layer; the defaults are SAC's."""

    members: int = 2
    units: tuple[int, ...] = (256, 256)
    norm: Literal["layer", "none"] = "none"
    """LayerNorm in every hidden layer bounds what a Q-function says where it was never asked."""
    pessimism: Literal["min", "lcb", "mean", "drawn"] = "min"
    """What N answers become: the least, mean - beta std, the mean, or the least of ``drawn`` members (REDQ)."""
    beta: float = 3.0
    drawn: int = 2
    diversity: float = 0.0
    """eta of EDAC: what is paid for members whose gradients by the action agree."""
    diversity_in: Literal["absolute", "returns"] = "absolute"
    """Its unit: as published, or times the square of the spread of target values, without which it is the whole loss of
    a task whose rewards are small."""
    init: Literal["torch", "edac"] = "torch"
    """How they begin: as PyTorch's linear layers do, or EDAC's way, hidden biases of 0.1 and a last layer in 3e-3."""
    rate: float = 0.005
    """Share of the fast weights that the slow copies take over after each update."""

    def __post_init__(self) -> None:
        check_range(self, 1, "members")
        check_range(self, 0, "beta", "diversity")
        if self.pessimism == "drawn" and not 1 <= self.drawn <= self.members:
            raise ValueError(f"drawn must be from 1 to members={self.members}, got {self.drawn}")
        if self.diversity and self.members < 2:
            raise ValueError("diversity needs at least 2 members")
        if self.init not in ("torch", "edac"):
            raise ValueError(f"init must be torch or edac, got {self.init!r}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {self.rate}")

    def build(self, feature_dim: int, action: ActionSpec) -> Critics:
        return Critics(self, feature_dim, action)


class Critics(nn.Module):
    """Q(features, action) by N fast networks that learn and N slow ones that targets are made of."""

    def __init__(self, config: CriticsConfig, feature_dim: int, action: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.inputs = Standardise(feature_dim)
        self.fast = EnsembleMLP(
            config.members, feature_dim + action.size, 1, units=config.units, norm=config.norm, activation="relu",
            init=uniform, bias=uniform,
        )
        if config.init == "edac":
            *hidden, last = self.fast.layers
            edac_start(hidden, last, 3e-3)
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)

    def every(self, features: Tensor, action: Tensor, *, slow: bool = False) -> Tensor:
        """(..., F), (..., A) -> (N, ...)."""
        net = self.slow if slow else self.fast
        return net(torch.cat([self.inputs(features), action], -1)).squeeze(-1)

    def value(self, features: Tensor, action: Tensor) -> Tensor:
        """(...) what the fast members together say; what a policy climbs. REDQ's policy climbs the mean."""
        every = self.every(features, action)
        return every.mean(0) if self.config.pessimism == "drawn" else self.combine(every)

    def target(self, features: Tensor, action: Tensor) -> Tensor:
        """(...) what the slow members together say."""
        return self.combine(self.every(features, action, slow=True))

    def combine(self, every: Tensor) -> Tensor:
        """(N, ...) -> (...), by ``pessimism``."""
        kind = self.config.pessimism
        if kind == "mean":
            return every.mean(0)
        if kind == "lcb":
            return every.mean(0) - self.config.beta * every.std(0, unbiased=False)
        if kind == "drawn":
            every = every[torch.rand(len(every), device=every.device).topk(self.config.drawn).indices]
        return every.amin(0)

    def loss(self, features: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """(...) sum over members of (Q_i - y)^2, and of ``diversity``."""
        error = (self.every(features, action) - target.detach()).square().sum(0)
        if not self.config.diversity:
            return error
        unit = target.detach().var(unbiased=False) if self.config.diversity_in == "returns" else 1.0
        return error + self.config.diversity * unit * self.agreement(features, action)

    def agreement(self, features: Tensor, action: Tensor) -> Tensor:
        """(...) 1/(N-1) sum_{i != j} <g_i, g_j>, g_i = grad_a Q_i / (|grad_a Q_i| + 1e-10) (EDAC, eq. 6)."""
        count = self.config.members
        # (N, ..., A): the members are apart, so the gradient of their sum is each one's own
        own, seen = action.detach().expand(count, *action.shape), self.inputs(features).expand(count, *features.shape)

        def total(tried: Tensor) -> Tensor:
            return self.fast.each(torch.cat([seen, tried], -1).reshape(count, -1, width)).sum()

        width = own.shape[-1] + seen.shape[-1]
        # a transform, not a call of autograd: it is traced with the rest of an update
        grad = torch.func.grad(total)(own)
        grad = grad / (grad.norm(dim=-1, keepdim=True) + 1e-10)
        # sum_{i != j} <g_i, g_j> = |sum_i g_i|^2 - sum_i |g_i|^2
        return (grad.sum(0).square().sum(-1) - grad.square().sum((0, -1))) / (count - 1)

    def track(self, healthy: Tensor) -> None:
        """Move the slow copies after an update; an unhealthy update moves nothing."""
        follow_(self.slow, self.fast, self.config.rate, healthy)
