"""The seam of representation objectives: what makes latents tell something about observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from worldmodel.types import Batch


class Objective(Protocol):
    """From live features and tokens to named (B, T) losses."""

    scales: dict[str, float]
    """One scale for each loss that the call returns."""
    decodes: bool
    """Whether the decoder is trained by this objective, with gradient into the model."""

    def __call__(self, features: Tensor, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        """features (B, T, F) and tokens (B, T, E), both with gradient."""
        ...


class ObjectiveConfig(Protocol):
    """Names an objective."""

    def build(self, feature_dim: int, token_size: int, make_decoder: Callable[[], Any]) -> Any: ...
