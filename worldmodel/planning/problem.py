"""What planners are measured on: a known model, where episodes start, and the best return, where it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.types import ActionSpec


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An episode of ``steps`` decisions in a model, planned in that same model."""

    name: str
    model: Any
    """A ``WorldModel``, which is world and model at once."""
    action: ActionSpec
    starts: Callable[[int, torch.Generator], Any]
    """States (count, ...) that episodes begin in."""
    steps: int
    """Decisions of an episode."""
    horizon: int = 12
    """Steps that planners look ahead."""
    discount: float = 1.0
    """Of plans; returns of episodes are not discounted."""
    value: Callable[[Tensor], Tensor] | None = None
    """What the last state of a plan is worth; the last state of an episode, too, is counted so."""
    continuation: Any = "product"
    """How plans count ends, see ``ExpectedReturn``."""
    optimum: Callable[[Any], Tensor] | None = None
    """Starts (B, ...) to the best return (B,), where it is known."""
    regret: Mapping[str, float] = field(default_factory=dict)
    """Planners by name, and the share of the best return's size that they may fall short of it by, given ``ample``."""
    ample: int = 5000
    """Trajectories of a decision at which that shall hold."""

    def objective(self) -> ExpectedReturn[Any]:
        """What planners are given."""
        return ExpectedReturn(
            model=self.model, action=self.action, discount=self.discount, value=self.value,
            bootstrap="none" if self.value is None else "last", continuation=self.continuation,
        )
