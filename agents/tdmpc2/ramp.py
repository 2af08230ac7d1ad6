"""What grows or falls while TD-MPC begins to learn: how far it plans, and how much it tries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import check_range


@dataclass(frozen=True, kw_only=True)
class RampConfig:
    """Where numbers begin that reach their own value, in equal steps, after so many updates; 0: they have it."""

    updates: int = 0
    """Updates in which they do; 0: nothing changes."""
    horizon: int = 0
    """Steps of the first plans, rounded down on the way to the planner's horizon (TD-MPC: 1)."""
    std: float = 0.0
    """Floor of the standard deviation of the first plans, on its way to the planner's (TD-MPC: 0.5)."""
    noise: float = 0.0
    """Noise of the first policy, on its way to its own (TCRL: 1)."""

    def __post_init__(self) -> None:
        check_range(self, 0, "updates", "horizon", "std", "noise")


class Ramp:
    """The numbers of now: () tensors that stay where they are, so that what is captured reads them."""

    def __init__(
        self, config: RampConfig, *, horizon: int, std: float, noise: float, device: torch.device
    ) -> None:
        """Args: horizon, std, noise: where they end."""
        self.updates = config.updates
        ends = torch.tensor([float(horizon), std, noise], device=device)
        begins = torch.tensor([float(config.horizon), config.std, config.noise], device=device)
        self._ends, self._begins = ends, torch.where((begins > 0) & bool(config.updates), begins, ends)
        self._now = self._begins.clone()
        self.depth, self.std, self.noise = self._now.unbind()
        self.shortens = bool(config.updates and config.horizon)
        self.widens = bool(config.updates and config.std)
        self.quietens = bool(config.updates and config.noise)

    @torch.no_grad()
    def follow(self, updates: Tensor) -> None:
        """Take the values of after () ``updates``."""
        if self.updates:
            share = (updates / self.updates).clamp(max=1.0)
            self._now.copy_(torch.lerp(self._begins, self._ends, share))
            # a thousandth of a step is rounding
            self.depth.copy_((self.depth + 1e-3).floor())
