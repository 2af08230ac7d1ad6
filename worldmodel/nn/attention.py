"""Transformer blocks over a window of the past: keys and values of earlier inputs come in and go out, nothing is kept
inside. A step is a sequence of one."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.nn.blocks import Linear

EPS = 1e-6
"""Of the norms in and around a block."""


class LayerNorm(nn.LayerNorm):
    """Over the last axis, in and out in float32, epsilon 1e-6."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class Sight(NamedTuple):
    """What T queries see of P earlier inputs and of each other."""

    mask: Tensor
    """(B, T, P + T) bool, true where a query sees a key."""
    turns: Tensor | None
    """(P + T, 2, d/2) cosines and sines of rotary positions, or None."""


class Mixed(NamedTuple):
    """What a block gives."""

    y: Tensor
    """(B, T, D)"""
    keys: Tensor
    """(B, P + T, D), the earlier ones first."""
    values: Tensor
    """(B, P + T, D)"""


class Attention(nn.Module):
    """softmax(q k' / sqrt(d)) v over heads of d = D / heads, without biases (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int, *, dropout: float, out_scale: float) -> None:
        """Args: dropout of attention weights; out_scale multiplies the initial weights of the output projection."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False, scale=out_scale)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, sight: Sight) -> Mixed:
        """(B, T, D) after earlier keys and values (B, P, D). Keys are kept unturned: positions are those within what
        is seen now, so that nothing grows with the length of an episode."""
        query, key, value = self.qkv(x).chunk(3, -1)
        keys = torch.cat([keys, key.to(keys.dtype)], 1)
        values = torch.cat([values, value.to(values.dtype)], 1)
        # (B, n, D) -> (B, heads, n, d)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, keys, values))
        if sight.turns is not None:
            q, k = turned(q, sight.turns[-x.shape[1] :]), turned(k, sight.turns)
        y = F.scaled_dot_product_attention(
            q, k.to(q.dtype), v.to(q.dtype), attn_mask=sight.mask.unsqueeze(1),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return Mixed(self.out(y.transpose(1, 2).flatten(-2)), keys, values)


class Block(nn.Module):
    """Attention, then two layers with a ReLU between, each with a residual: norm(x + f(x)) where norms come after
    (Vaswani et al. 2017), x + f(norm(x)) where they come before (Xiong et al. 2020)."""

    def __init__(
        self, width: int, heads: int, hidden: int, *, norm: Literal["post", "pre"], dropout: float, out_scale: float
    ) -> None:
        super().__init__()
        self.is_post = norm == "post"
        self.attention = Attention(width, heads, dropout=dropout, out_scale=out_scale)
        self.feed = nn.Sequential(Linear(width, hidden), nn.ReLU(), Linear(hidden, width, scale=out_scale))
        self.attention_norm, self.feed_norm = LayerNorm(width), LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, sight: Sight) -> Mixed:
        """See :meth:`Attention.forward`; the residual stream is float32."""
        y, keys, values = self.attention(x if self.is_post else self.attention_norm(x), keys, values, sight)
        x = x + self.dropout(y)
        if self.is_post:
            x = self.attention_norm(x)
            return Mixed(self.feed_norm(x + self.dropout(self.feed(x))), keys, values)
        return Mixed(x + self.dropout(self.feed(self.feed_norm(x))), keys, values)


def turns(count: int, size: int, device: torch.device, base: float = 10_000.0) -> Tensor:
    """(count, 2, size/2) cosines and sines of position times frequency base^(-2i/size) (Su et al. 2021).

    Angles are float64: at position 1000 those of float32 are off by more than its rounding elsewhere.
    """
    at = torch.arange(count, device=device, dtype=torch.float64)
    frequency = base ** (-torch.arange(0, size, 2, device=device, dtype=torch.float64) / size)
    angle = at.unsqueeze(1) * frequency
    return torch.stack([angle.cos(), angle.sin()], 1).float()


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """(B, heads, n, d) with the pairs (x_i, x_{i+d/2}) turned by their position's angles (n, 2, d/2)."""
    cos, sin = turns.unbind(1)
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
