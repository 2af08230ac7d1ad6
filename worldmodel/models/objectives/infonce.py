"""Tell the right token from all others of the batch (InfoNCE)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel import ranks
from worldmodel.nn.blocks import Linear
from worldmodel.types import Batch


@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig:
    """Contrastive: projected latents against tokens, in-batch negatives (van den Oord et al. 2018; as in R2-Dreamer's
    baselines)."""

    scale: float = 1.0
    """Weight of the loss."""

    def build(self, feature_dim: int, token_size: int, make_decoder: Callable[[], Any]) -> InfoNCE:
        return InfoNCE(feature_dim, token_size, self.scale)


class InfoNCE(nn.Module):
    """-log softmax(P feature . token) at the step's own token, over all B*T tokens; the tokens get gradient too."""

    decodes = False

    def __init__(self, feature_dim: int, token_size: int, scale: float) -> None:
        super().__init__()
        self.project = Linear(feature_dim, token_size, bias=False)
        self.scales = {"infonce": scale}

    def forward(self, features: Tensor, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        # (N, N); where processes share a batch, (N, processes x N)
        mine = tokens.flatten(0, 1)
        logits = (self.project(features).flatten(0, 1) @ ranks.rows(mine).T).float()
        own = torch.log_softmax(logits, -1).diagonal(ranks.index() * mine.shape[0])
        return {"infonce": -own.reshape(tokens.shape[:2])}
