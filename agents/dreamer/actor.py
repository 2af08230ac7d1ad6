"""Policies over latent features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from worldmodel.distributions import BoundedNormal, Categorical
from worldmodel.errors import MisfitError, check_range
from worldmodel.nn.blocks import MLP, Linear
from worldmodel.types import ActionSpec


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """A policy: bounded normal for continuous actions, categorical for discrete ones."""

    units: int = 1024
    layers: int = 3
    scale: float = 0.01
    """Multiplies the initial output weights, so that the first policy is close to uniform."""
    min_std: float = 0.1
    max_std: float = 1.0
    unimix: float = 0.01
    """Share of the uniform distribution in discrete policies."""
    gradient: Literal["reinforce", "dynamics"] = "reinforce"
    """How actions learn: score function, or (continuous actions) backpropagation through the imagined dynamics."""
    entropy: float = 3e-4
    """Weight of the entropy bonus."""

    def __post_init__(self) -> None:
        check_range(self, 1, "units")
        check_range(self, 0, "layers")
        check_range(self, 0, "unimix", high=1)
        if not 0 < self.min_std < self.max_std:
            raise ValueError(f"need 0 < min_std < max_std, got {self.min_std} and {self.max_std}")

    def build(self, feature_dim: int, action: ActionSpec) -> Actor:
        if self.gradient == "dynamics" and action.kind == "discrete":
            raise MisfitError(
                'gradient="dynamics" needs continuous actions, this task has discrete ones; use "reinforce"'
            )
        return Actor(self, feature_dim, action)


class Actor(nn.Module):
    """features -> distribution of actions."""

    def __init__(self, config: ActorConfig, feature_dim: int, action: ActionSpec) -> None:
        super().__init__()
        self.config, self.action = config, action
        self.mlp = MLP(feature_dim, config.units, config.layers)
        self.out = Linear(self.mlp.out_dim, action.size, scale=config.scale)
        if action.kind == "continuous":
            self.std = Linear(self.mlp.out_dim, action.size, scale=config.scale)

    def forward(self, features: Tensor) -> BoundedNormal | Categorical:
        """(..., F) -> distribution over (..., A)."""
        hidden = self.mlp(features)
        if self.action.kind == "discrete":
            return Categorical(self.out(hidden), self.config.unimix)
        return BoundedNormal(
            self.out(hidden), self.std(hidden), min_std=self.config.min_std, max_std=self.config.max_std
        )
