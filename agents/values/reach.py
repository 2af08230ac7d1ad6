"""What a value learner knows of its own reach: how far a state is from all those that it was ever corrected at.

A state that rollouts end in, and none passes through, is bootstrapped from and never learned (the edge-of-reach
problem, Sims et al. 2024). A detector scores states; its score lowers the truncated bootstrap alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.errors import check_range
from worldmodel.nn.blocks import Linear

MOST = 4096
"""Values that their spread is taken from."""


@dataclass(frozen=True, kw_only=True)
class ReachConfig:
    """A detector of states beyond reach, and what they are worth.

    "knn" and "rnd" score distances, and what is far is read off the inputs themselves (adaptive conformal inference,
    Gibbs and Candes 2021): ``share`` of those that come score above 1, however unevenly they lie. Beyond 1 a state
    costs the more the farther it is, but at most as much as the values that are learned differ by: a cost without end
    makes all bootstraps fall that lead there, with them the spread of values grow, and with that the cost.
    """

    detector: Literal["none", "knn", "rnd", "ensemble"] = "knn"
    """Distance to the nearest of remembered inputs; error of a network that learns to predict a random one of them; or
    the standard deviation of an ensemble's values, which asks a critic with several members."""
    slope: float = 2.0
    """Cost of a score of 1 beyond 1, in spreads of the values that are learned (95th less 5th percentile, at least 1),
    of which it is at most one. For "ensemble": cost of a unit of standard deviation, from 0 and without a bound."""
    share: float = 0.01
    """Of the inputs that come, those that shall score above 1."""
    memory: int = 1024
    """knn: inputs held, overwritten in turn."""
    remembered: int = 32
    """knn: of each batch."""
    width: int = 64
    """rnd: of both networks."""
    rate: float = 0.01
    """At which the spread of values, and the place and scale of inputs, are followed."""

    def __post_init__(self) -> None:
        check_range(self, 0, "slope")
        check_range(self, 1, "memory", "remembered", "width")
        if self.remembered > self.memory:
            raise ValueError(f"remembered={self.remembered} must not exceed memory={self.memory}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {self.rate}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), got {self.share}")

    def build(self, feature_dim: int) -> Reach:
        return Reach(self, feature_dim)


class Reach(nn.Module):
    """Scores features; trained, where it has parameters, by the agent's optimiser."""

    held: Tensor
    count: Tensor
    centre: Tensor
    scale: Tensor
    usual: Tensor
    spread: Tensor
    quantiles: Tensor

    def __init__(self, config: ReachConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        rows = config.memory if config.detector == "knn" else 0
        self.register_buffer("held", torch.zeros(rows, feature_dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("centre", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.ones(feature_dim))
        self.register_buffer("usual", torch.ones(()))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("quantiles", torch.tensor((0.05, 0.95)), persistent=False)
        if config.detector == "rnd":
            self.fixed = _net(feature_dim, config.width).requires_grad_(False)
            self.learner = _net(feature_dim, config.width)

    def score(self, features: Tensor, spread: Tensor | None = None) -> Tensor:
        """(..., F) -> (...), up to 1 where inputs lie, more beyond them; differentiable.

        Args: spread: (...) standard deviation of an ensemble's values, which is the score of "ensemble".
        """
        if self.config.detector == "ensemble":
            assert spread is not None, "the detector ensemble needs a critic with several members"
            return spread
        if self.config.detector == "none":
            return features.new_zeros(features.shape[:-1])
        return self._raw(features) / self.usual

    def cost(self, score: Tensor) -> Tensor:
        """(...) >= 0, what a bootstrap from states with these scores is lowered by."""
        if self.config.detector == "ensemble":
            return self.config.slope * score
        return self.spread * (self.config.slope * (score - 1)).clamp(0, 1)

    def loss(self, features: Tensor) -> Tensor:
        """(..., F) -> (...): what teaches "rnd" its inputs; zero for the others."""
        if self.config.detector != "rnd":
            return features.new_zeros(features.shape[:-1])
        return self._raw(features.detach()).square()

    @torch.no_grad()
    def remember(self, features: Tensor, value: Tensor, healthy: Tensor) -> None:
        """Take in what the critic was corrected at, (N, F), and the values that it learned there, (N,); nothing of an
        update that was not healthy."""
        c = self.config
        if c.detector == "none":  # nothing would be asked of it
            return
        flat = features.reshape(-1, features.shape[-1]).float()
        learned = value.reshape(-1)[:MOST].float()
        good = healthy & flat.isfinite().all() & learned.isfinite().all()
        begun = self.count > 0
        rate = torch.where(begun, c.rate, 1.0)
        low, high = torch.quantile(learned, self.quantiles)
        _follow(self.spread, (high - low).clamp(min=1.0), rate, good)
        if c.detector in ("knn", "rnd"):
            _follow(self.centre, flat.mean(0), rate, good)
            _follow(self.scale, flat.std(0, unbiased=False).clamp(min=1e-3), rate, good)
            chosen = flat[torch.randint(len(flat), (c.remembered,), device=flat.device)]
            # a memory that is nearly empty is far from everything
            known = good & (begun if c.detector == "rnd" else self.count >= c.memory // 2)
            above = (self._raw(chosen) > self.usual).float().mean()
            # hovers where the share is right, in proportions, since distances have no unit; few inputs say little
            gain = min(1.0, c.remembered / 32)
            self.usual.mul_(torch.where(known, (gain * (above - c.share)).exp(), 1.0))
            if c.detector == "knn":
                at = (self.count + torch.arange(c.remembered, device=flat.device)) % c.memory
                self.held[at] = torch.where(good, chosen, self.held[at])
        self.count.add_(c.remembered * good.long())

    def _raw(self, features: Tensor) -> Tensor:
        # inputs are remembered in float32: a score in less precision would be of another kind
        with torch.autocast(features.device.type, enabled=False):
            return self._distance(features.float())

    def _distance(self, features: Tensor) -> Tensor:
        x = (features - self.centre) / self.scale
        flat = x.reshape(-1, x.shape[-1])
        if self.config.detector == "rnd":
            error = (self.learner(flat) - self.fixed(flat)).square().mean(-1)
            return (error + 1e-12).sqrt().view(x.shape[:-1])
        held = (self.held - self.centre) / self.scale
        # what was never filled lies infinitely far
        empty = torch.arange(len(held), device=held.device) >= self.count
        with torch.no_grad():
            # |x - h|^2 without |x|^2, which moves no minimum
            far = torch.addmm(held.square().sum(-1).masked_fill(empty, float("inf")), flat, held.mT, alpha=-2)
            nearest = held[far.argmin(1)]
        distance = ((flat - nearest).square().sum(-1) + 1e-12).sqrt()
        return torch.where(self.count > 0, distance, 0.0).view(x.shape[:-1])


def _follow(average: Tensor, value: Tensor, rate: Tensor, good: Tensor) -> None:
    """Move ``average`` in place towards ``value``, unless () ``good`` is False, whatever the value then is."""
    average.copy_(torch.where(good, average + rate * (value - average), average))


def _net(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(Linear(inputs, width), nn.ReLU(), Linear(width, width), nn.ReLU(), Linear(width, width))
