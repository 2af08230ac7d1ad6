"""Decorrelate instead of reconstructing (R2-Dreamer)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from worldmodel import ranks
from worldmodel.nn.blocks import Linear
from worldmodel.types import Batch


@dataclass(frozen=True, kw_only=True)
class BarlowConfig:
    """Barlow-Twins redundancy reduction between projected latents and encoder tokens (R2-Dreamer, arXiv 2603.18202)."""

    scale: float = 0.05
    """Weight of the loss."""
    off_diagonal: float = 5e-4
    """Weight of the off-diagonal terms."""

    def build(self, feature_dim: int, token_size: int, make_decoder: Callable[[], Any]) -> Barlow:
        return Barlow(feature_dim, token_size, self)


def cross_correlation(a: Tensor, b: Tensor) -> Tensor:
    """(N, E), (N, E) -> (E, E): each column standardised over N (unbiased std, + 1e-8), then a' b / N."""
    a = (a - a.mean(0)) / (a.std(0) + 1e-8)
    b = (b - b.mean(0)) / (b.std(0) + 1e-8)
    return (a.T @ b).float() / a.shape[0]


class Barlow(nn.Module):
    """sum_i (C_ii - 1)^2 + w sum_{i != j} C_ij^2, with C between P features and stop-gradient tokens.

    The encoder learns only through the posterior: with gradient through the target the representation collapses.
    """

    decodes = False

    def __init__(self, feature_dim: int, token_size: int, config: BarlowConfig) -> None:
        super().__init__()
        self.project = Linear(feature_dim, token_size, bias=False)
        self.config = config
        self.scales = {"barlow": config.scale}

    def forward(self, features: Tensor, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        latents, targets = self.project(features).flatten(0, 1).float(), tokens.detach().flatten(0, 1).float()
        c = cross_correlation(ranks.rows(latents), ranks.rows(targets))
        diagonal = c.diagonal()
        on = (diagonal - 1).square().sum()
        off = c.square().sum() - diagonal.square().sum()
        # one number for the batch, spread over (B, T) so that it is reduced like every other loss
        return {"barlow": (on + self.config.off_diagonal * off).expand(tokens.shape[:2])}
