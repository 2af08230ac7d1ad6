"""A distributional critic with a slow copy (DreamerV3)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.errors import check_range
from worldmodel.nn.heads import TwoHotHead
from worldmodel.nn.slow import follow_


@dataclass(frozen=True, kw_only=True)
class TwoHotValueConfig:
    """State value as a two-hot categorical over symexp bins, regularised towards its own slow average."""

    units: int = 1024
    layers: int = 3
    bins: int = 255
    slow_rate: float = 0.02
    """Share of the fast weights that the slow copy takes over after each update."""
    slow_scale: float = 1.0
    """Weight of the pull towards the slow copy's prediction."""
    slow_target: bool = False
    """Bootstrap returns from the slow copy instead of the fast critic."""

    def __post_init__(self) -> None:
        check_range(self, 1, "units")
        check_range(self, 0, "layers")
        if self.bins % 2 != 1 or self.bins < 3:
            raise ValueError(f"bins must be an odd number of at least 3, got {self.bins}")
        if not 0 < self.slow_rate <= 1:
            raise ValueError(f"slow_rate must be in (0, 1], got {self.slow_rate}")

    def build(self, feature_dim: int) -> TwoHotValue:
        return TwoHotValue(self, feature_dim)


class TwoHotValue(nn.Module):
    """Implements ``ValueLearner``: ``value``, ``target``, ``loss``, ``track``."""

    def __init__(self, config: TwoHotValueConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.fast = TwoHotHead(feature_dim, config.units, config.layers, bins=config.bins)
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)

    def value(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), the fast critic's mean."""
        return self.fast(features).mean()

    def target(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), what returns bootstrap from."""
        return (self.slow if self.config.slow_target else self.fast)(features).mean()

    def loss(self, features: Tensor, return_: Tensor) -> Tensor:
        """(...) cross-entropy to the return and to the slow copy's prediction; both targets are constants."""
        predicted = self.fast(features)
        with torch.no_grad():
            slow = self.slow(features).mean()
        return predicted.loss(return_) + self.config.slow_scale * predicted.loss(slow)

    def track(self, healthy: Tensor) -> None:
        """Move the slow copy after an update; an unhealthy update moves nothing."""
        follow_(self.slow, self.fast, self.config.slow_rate, healthy)
