"""Policies over features: SAC's normal distribution squashed into [-1, 1], and one whose mean alone is squashed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import distributions
from worldmodel.distributions import ClampedNormal, log_slope
from worldmodel.errors import MisfitError, check_range
from worldmodel.nn.ensemble import edac_start
from worldmodel.nn.normed import Standardise
from worldmodel.types import ActionSpec

LOG_STD = (-5.0, 2.0)
"""Bounds of the logarithm of the standard deviation."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """A policy's network."""

    units: tuple[int, ...] = (256, 256)
    noise: Literal["squashed", "added"] = "squashed"
    """Where it is: inside of the tanh (SAC), or outside, with one standard deviation for all states (IQL), so that the
    likelihood of an action at its bounds is finite."""
    init: Literal["torch", "edac"] = "torch"
    """How it begins: as PyTorch's linear layers do, or EDAC's way, hidden biases of 0.1 and a last layer in 1e-3."""

    def __post_init__(self) -> None:
        if not self.units or min(self.units) < 1:
            raise ValueError(f"units must be widths of hidden layers, got {self.units}")
        if self.noise not in ("squashed", "added"):
            raise ValueError(f"noise must be squashed or added, got {self.noise!r}")
        if self.init not in ("torch", "edac"):
            raise ValueError(f"init must be torch or edac, got {self.init!r}")

    def build(self, feature_dim: int, action: ActionSpec) -> SquashedPolicy:
        if action.kind == "discrete" or not action.is_bounded:
            raise MisfitError("this agent needs continuous actions with finite bounds; for choices take a Dreamer")
        return SquashedPolicy(self, feature_dim, action.size)


class SquashedPolicy(nn.Module):
    """features -> tanh of a normal distribution, or a normal distribution around a tanh."""

    def __init__(self, config: PolicyConfig, feature_dim: int, actions: int) -> None:
        super().__init__()
        self.feature_dim, self.actions = feature_dim, actions
        self.inputs = Standardise(feature_dim)
        widths = (feature_dim, *config.units)
        self.log_std = nn.Parameter(torch.zeros(actions)) if config.noise == "added" else None
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(widths[-1], actions if config.noise == "added" else 2 * actions)
        if config.init == "edac":
            edac_start(self.layers, self.out, 1e-3)

    def forward(self, features: Tensor) -> SquashedNormal | AddedNormal:
        """(..., F) -> distribution over (..., A)."""
        features = self.inputs(features)
        for layer in self.layers:
            features = F.relu(layer(features))
        out = self.out(features).float()
        if self.log_std is not None:
            return AddedNormal(torch.tanh(out), self.log_std.clamp(*LOG_STD).expand_as(out))
        mean, log_std = out.chunk(2, -1)
        return SquashedNormal(mean, log_std.clamp(*LOG_STD))


class SquashedNormal(distributions.SquashedNormal):
    """With what critics ask of it: draws that come with their log-probability, and many of them."""

    def sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """(..., A) and its log-probability (...), from which no inverse of tanh has to be taken."""
        raw, before = self.draw()
        return torch.tanh(raw), before - log_slope(raw)

    def times(self, count: int) -> SquashedNormal:
        """(N, A) to (N, count, A): as many independent draws."""
        return SquashedNormal(*(x.unsqueeze(1).expand(-1, count, -1) for x in (self.mean, self.log_std)))


class AddedNormal(ClampedNormal):
    """Likewise, with the noise outside of the tanh."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        """Args: (..., A) each; mean in [-1, 1]."""
        self.mean, self.log_std = mean, log_std

    def sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """(..., A) and its log-probability (...), before it is cut off."""
        raw = self.mean + self.log_std.exp() * torch.randn_like(self.mean)
        return raw.clamp(-1, 1), self.log_prob(raw)

    def times(self, count: int) -> AddedNormal:
        """(N, A) to (N, count, A): as many independent draws."""
        return AddedNormal(*(x.unsqueeze(1).expand(-1, count, -1) for x in (self.mean, self.log_std)))


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """alpha, the price of certainty."""

    initial: float = 1.0
    target: float | None = None
    """Entropy that is kept, in nats; None: minus the number of actions."""
    is_learned: bool = True
    highest: float = 1e6
    """What losses take it for where it has grown beyond (MOBILE: 1)."""

    def __post_init__(self) -> None:
        check_range(self, 0, "initial")
