"""Reconstruct the observation (DreamerV3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from worldmodel.nn.decoders import Decoder
from worldmodel.types import Batch


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Decode every observation key from the latent (DreamerV3, eq. 5, prediction loss)."""

    scale: float = 1.0
    """Weight of the loss."""

    def build(self, feature_dim: int, token_size: int, make_decoder: Callable[[], Decoder]) -> Reconstruction:
        return Reconstruction(make_decoder(), self.scale)


class Reconstruction(nn.Module):
    """Owns the decoder; gradient reaches the whole model."""

    decodes = True

    def __init__(self, decoder: Decoder, scale: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.scales = {"reconstruction": scale}

    def forward(self, features: Tensor, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"reconstruction": self.decoder.loss(features, batch.obs)}
