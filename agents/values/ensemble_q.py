"""Many Q-functions of which few are asked (TD-MPC2; REDQ, Chen et al. 2021)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.distributions import Plain, Space, SymlogTwoHot, TwoHot, scalar, spaced_bins
from worldmodel.errors import check_range
from worldmodel.nn.ensemble import EnsembleMLP
from worldmodel.nn.normed import INITS, Activation, Init, NormedLinear
from worldmodel.nn.slow import follow_
from worldmodel.types import ActionSpec


@dataclass(frozen=True, kw_only=True)
class EnsembleQConfig:
    """An ensemble of distributional Q-functions with slow copies; the defaults are TD-MPC2's 5M."""

    members: int = 5
    drawn: int = 2
    """Members asked in one call, drawn anew each time."""
    judges: Literal["mean", "min"] = "mean"
    """What the drawn ones say together to planners and to the policy, which climbs it (TD-MPC: "min")."""
    evaluates: Literal["drawn", "all"] = "drawn"
    """Which are computed for that: the drawn ones alone, or all of which the others are thrown away (TD-MPC2). The
    numbers are the same."""
    units: int = 512
    layers: int = 2
    activation: Activation = "mish"
    norm: Literal["layer", "first", "none"] = "layer"
    """Which hidden layers are normalised; after "first" a tanh follows (TD-MPC)."""
    trunk: Literal["own", "shared"] = "own"
    """The first hidden layer: each member's own, or one of all, with a LayerNorm and a tanh (TCRL)."""
    init: Init = "normal"
    out_scale: float = 0.0
    """What the last layer's initial weights are multiplied by."""
    dropout: float = 0.01
    """In the first hidden layer, while learning."""
    bins: int = 101
    limit: float = 10.0
    """Bins lie in [-limit, limit] in symlog space: +-22,025."""
    space: Space = "symlog"
    """Where the mean is taken: of logarithms (TD-MPC2), or of values; "plain" without bins, by squared errors, whose
    sum over the members is the loss (TD-MPC)."""
    rate: float = 0.01
    """Share of the fast weights that the slow copies take over after each update."""

    def __post_init__(self) -> None:
        if not 1 <= self.drawn <= self.members:
            raise ValueError(f"drawn must be from 1 to members={self.members}, got {self.drawn}")
        check_range(self, 0, "rate", "dropout", high=1)
        if self.trunk == "shared" and (self.layers < 2 or self.norm != "none"):
            raise ValueError(f"a shared trunk needs 2 layers or more and norm='none', got {self.layers}, {self.norm!r}")

    def build(self, feature_dim: int, action: ActionSpec) -> EnsembleQ:
        return EnsembleQ(self, feature_dim, action)


class EnsembleQ(nn.Module):
    """Q(features, action): the least of the drawn slow members as a target; of the drawn fast ones else the mean, or
    the least."""

    bins: Tensor

    def __init__(self, config: EnsembleQConfig, feature_dim: int, action: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("bins", spaced_bins(config.bins, config.limit, config.space), persistent=False)
        inputs, shared = feature_dim + action.size, config.trunk == "shared"
        self.fast = EnsembleMLP(
            config.members, config.units if shared else inputs, len(self.bins),
            units=(config.units,) * (config.layers - shared), norm=config.norm, activation=config.activation,
            dropout=config.dropout, init=INITS[config.init], out_scale=config.out_scale,
        )
        self.trunk: NormedLinear | None = None
        if shared:
            self.trunk = NormedLinear(inputs, config.units, torch.tanh, init=config.init)
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)
        self.slow_trunk = copy.deepcopy(self.trunk).requires_grad_(False) if self.trunk is not None else None

    def value(self, features: Tensor, action: Tensor, *, drop: bool = False) -> Tensor:
        """(..., F), (..., A) -> (...), the mean of the drawn members, or the least."""
        asked = self._asked(self.fast, self._read(features, action), drop)
        return asked.amin(0) if self.config.judges == "min" else asked.mean(0)

    def target(self, features: Tensor, action: Tensor) -> Tensor:
        """(...), the least of the drawn slow members."""
        return self._asked(self.slow, self._read(features, action, slow=True), False).amin(0)

    def every(self, features: Tensor, action: Tensor) -> Tensor:
        """(members, ...): what penalties of disagreement ask (FOWM)."""
        return self._scalar(self.fast(self._read(features, action))).mean()

    def loss(self, features: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """(...) cross-entropy to ``target`` (...), the mean over all members, or squared error, their sum; with
        dropout."""
        return self._compared(self._scalar(self.fast(self._read(features, action), drop=True)), target)

    def judged(self, features: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(...) :meth:`loss`, and sum over members of |Q - target|, a constant: what prioritised replay goes by."""
        predicted = self._scalar(self.fast(self._read(features, action), drop=True))
        return self._compared(predicted, target), (predicted.mean().detach() - target).abs().sum(0)

    def track(self, healthy: Tensor) -> None:
        """Move the slow copies after an update; an unhealthy update moves nothing."""
        follow_(self.slow, self.fast, self.config.rate, healthy)
        if self.trunk is not None and self.slow_trunk is not None:
            follow_(self.slow_trunk, self.trunk, self.config.rate, healthy)

    def draw(self) -> Tensor:
        """(drawn,) indices of members."""
        return torch.rand(self.config.members, device=self.bins.device).topk(self.config.drawn).indices

    def _compared(self, predicted: TwoHot | SymlogTwoHot | Plain, target: Tensor) -> Tensor:
        losses = predicted.loss(target.expand(self.config.members, *target.shape))
        return losses.sum(0) if self.config.space == "plain" else losses.mean(0)

    def _read(self, features: Tensor, action: Tensor, *, slow: bool = False) -> Tensor:
        """(..., F), (..., A) -> (..., I), what members are asked with."""
        told, trunk = torch.cat([features, action], -1), self.slow_trunk if slow else self.trunk
        return told if trunk is None else trunk(told)

    def _asked(self, net: EnsembleMLP, told: Tensor, drop: bool) -> Tensor:
        members = self.draw()
        if self.config.evaluates == "all":
            logits = net(told, drop=drop)[members]
        else:
            logits = net(told, members, drop=drop)
        return self._scalar(logits).mean()

    def _scalar(self, logits: Tensor) -> TwoHot | SymlogTwoHot | Plain:
        return scalar(logits, self.bins, self.config.space)
