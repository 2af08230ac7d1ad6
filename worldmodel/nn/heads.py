"""Heads: an MLP and a distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.distributions import TwoHot, symexp_bins
from worldmodel.nn.blocks import MLP, Linear


class TwoHotHead(nn.Module):
    """Scalar prediction as a two-hot categorical over symexp bins; zero-initialised, so it starts at exactly 0."""

    bins: Tensor

    def __init__(self, inputs: int, units: int, layers: int, *, bins: int = 255, scale: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.out = Linear(self.mlp.out_dim, bins, scale=scale)
        self.register_buffer("bins", symexp_bins(bins), persistent=False)

    def forward(self, features: Tensor) -> TwoHot:
        return TwoHot(self.out(self.mlp(features)), self.bins)


class BernoulliHead(nn.Module):
    """A probability."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.out = Linear(self.mlp.out_dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) -> logit (...), float32."""
        return self.out(self.mlp(features)).squeeze(-1).float()

    @staticmethod
    def loss(logit: Tensor, target: Tensor) -> Tensor:
        """(...) cross-entropy; ``target`` in [0, 1] may be soft."""
        return torch.nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
