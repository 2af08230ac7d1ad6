"""Many Q-functions of which few are asked (TD-MPC2; REDQ, Chen et al. 2021)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.distributions import Space, SymlogTwoHot, TwoHot, scalar, spaced_bins
from worldmodel.errors import check_range
from worldmodel.nn.ensemble import EnsembleMLP
from worldmodel.nn.normed import Activation, normal02
from worldmodel.nn.slow import follow_
from worldmodel.types import ActionSpec


@dataclass(frozen=True, kw_only=True)
class EnsembleQConfig:
    """An ensemble of distributional Q-functions with slow copies; the defaults are TD-MPC2's 5M."""

    members: int = 5
    drawn: int = 2
    """Members asked in one call, drawn anew each time."""
    evaluates: Literal["drawn", "all"] = "drawn"
    """Which are computed for that: the drawn ones alone, or all of which the others are thrown away (TD-MPC2). The
    numbers are the same."""
    units: int = 512
    layers: int = 2
    activation: Activation = "mish"
    dropout: float = 0.01
    """In the first hidden layer, while learning."""
    bins: int = 101
    limit: float = 10.0
    """Bins lie in [-limit, limit] in symlog space: +-22,025."""
    space: Space = "symlog"
    """Where the mean is taken: of logarithms (TD-MPC2), or of values."""
    rate: float = 0.01
    """Share of the fast weights that the slow copies take over after each update."""

    def __post_init__(self) -> None:
        if not 1 <= self.drawn <= self.members:
            raise ValueError(f"drawn must be from 1 to members={self.members}, got {self.drawn}")
        check_range(self, 0, "rate", "dropout", high=1)

    def build(self, feature_dim: int, action: ActionSpec) -> EnsembleQ:
        return EnsembleQ(self, feature_dim, action)


class EnsembleQ(nn.Module):
    """Q(features, action): the least of the drawn slow members as a target, the mean of the drawn fast ones else."""

    bins: Tensor

    def __init__(self, config: EnsembleQConfig, feature_dim: int, action: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.fast = EnsembleMLP(
            config.members, feature_dim + action.size, config.bins, units=(config.units,) * config.layers,
            activation=config.activation, dropout=config.dropout, init=normal02, out_scale=0.0,
        )
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)
        self.register_buffer("bins", spaced_bins(config.bins, config.limit, config.space), persistent=False)

    def value(self, features: Tensor, action: Tensor, *, drop: bool = False) -> Tensor:
        """(..., F), (..., A) -> (...), the mean of the drawn members."""
        return self._asked(self.fast, features, action, drop).mean(0)

    def target(self, features: Tensor, action: Tensor) -> Tensor:
        """(...), the least of the drawn slow members."""
        return self._asked(self.slow, features, action, False).amin(0)

    def every(self, features: Tensor, action: Tensor) -> Tensor:
        """(members, ...): what penalties of disagreement ask (FOWM)."""
        return self._scalar(self.fast(torch.cat([features, action], -1))).mean()

    def loss(self, features: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """(...) cross-entropy to ``target`` (...), the mean over all members, with dropout."""
        predicted = self._scalar(self.fast(torch.cat([features, action], -1), drop=True))
        return predicted.loss(target.expand(self.config.members, *target.shape)).mean(0)

    def track(self, healthy: Tensor) -> None:
        """Move the slow copies after an update; an unhealthy update moves nothing."""
        follow_(self.slow, self.fast, self.config.rate, healthy)

    def draw(self) -> Tensor:
        """(drawn,) indices of members."""
        return torch.rand(self.config.members, device=self.bins.device).topk(self.config.drawn).indices

    def _asked(self, net: EnsembleMLP, features: Tensor, action: Tensor, drop: bool) -> Tensor:
        told, members = torch.cat([features, action], -1), self.draw()
        if self.config.evaluates == "all":
            logits = net(told, drop=drop)[members]
        else:
            logits = net(told, members, drop=drop)
        return self._scalar(logits).mean()

    def _scalar(self, logits: Tensor) -> TwoHot | SymlogTwoHot:
        return scalar(logits, self.bins, self.config.space)
