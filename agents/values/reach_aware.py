"""An ensemble of state values that knows its reach: RAVL's critic for agents that learn in imagination."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.agents.values.reach import ReachConfig
from worldmodel.errors import check_range
from worldmodel.nn.ensemble import EnsembleMLP, uniform
from worldmodel.nn.slow import follow_


@dataclass(frozen=True, kw_only=True)
class ReachAwareValueConfig:
    """N networks that regress returns, with slow copies that returns bootstrap from."""

    members: int = 2
    units: tuple[int, ...] = (512, 512)
    norm: Literal["layer", "none"] = "layer"
    pessimism: Literal["min", "lcb", "mean"] = "mean"
    """What N answers become: the least, mean - beta std, or the mean."""
    beta: float = 3.0
    where: Literal["everywhere", "edge"] = "edge"
    """Which bootstraps are pessimistic: all, or the truncated one alone, while the others take the mean."""
    reach: ReachConfig = field(default_factory=ReachConfig)
    """What the last state of a dream costs where it is far from all that the critic was corrected at."""
    rate: float = 0.02
    """Share of the fast weights that the slow copies take over after each update."""

    def __post_init__(self) -> None:
        check_range(self, 1, "members")
        check_range(self, 0, "beta")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {self.rate}")

    def build(self, feature_dim: int) -> ReachAwareValue:
        return ReachAwareValue(self, feature_dim)


class ReachAwareValue(nn.Module):
    """Implements ``ValueLearner`` and ``Truncates``."""

    inputs: Tensor
    returns: Tensor

    def __init__(self, config: ReachAwareValueConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.fast = EnsembleMLP(
            config.members, feature_dim, 1, units=config.units, norm=config.norm, activation="relu", init=uniform,
            bias=uniform, out_scale=0.1,
        )
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)
        self.reach = config.reach.build(feature_dim)
        rows = config.reach.remembered
        self.register_buffer("inputs", torch.zeros(rows, feature_dim), persistent=False)
        self.register_buffer("returns", torch.zeros(rows), persistent=False)

    def value(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), the mean of the fast members."""
        return self.fast(features).squeeze(-1).float().mean(0)

    def target(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), what returns bootstrap from inside of a dream."""
        every = self.slow(features).squeeze(-1).float()
        return self._combined(every) if self.config.where == "everywhere" else every.mean(0)

    def truncated(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), what they bootstrap from where the dream is cut off."""
        every = self.slow(features).squeeze(-1).float()
        score = self.reach.score(features.float(), every.std(0, unbiased=False))
        return self._combined(every) - self.reach.cost(score)

    def loss(self, features: Tensor, return_: Tensor) -> Tensor:
        """(...) sum over members of half the squared errors, and what teaches the detector. A few inputs are noted, and
        ``track`` takes them in."""
        return_ = return_.detach()
        error = 0.5 * (self.fast(features).squeeze(-1).float() - return_).square().sum(0)
        with torch.no_grad():
            flat, wanted = features.reshape(-1, features.shape[-1]), return_.reshape(-1)
            at = torch.randint(len(flat), (len(self.inputs),), device=flat.device)
            self.inputs.copy_(flat[at])
            self.returns.copy_(wanted[at])
        return error + self.reach.loss(features.float())

    def track(self, healthy: Tensor) -> None:
        """Move the slow copies, and remember inputs, after an update; an unhealthy one moves nothing."""
        follow_(self.slow, self.fast, self.config.rate, healthy)
        self.reach.remember(self.inputs, self.returns, healthy)

    def _combined(self, every: Tensor) -> Tensor:
        c = self.config
        if c.pessimism == "min":
            return every.amin(0)
        return every.mean(0) - (c.beta * every.std(0, unbiased=False) if c.pessimism == "lcb" else 0.0)
