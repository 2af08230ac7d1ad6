"""Transformer blocks over a window of the past: keys and values of earlier inputs come in and go out, nothing is kept
inside. A step is a sequence of one. Rows that go on from the same past can share it."""

from __future__ import annotations

import math
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
    """What T queries see of P earlier inputs and of each other; where a past of S inputs is shared, of that before."""

    mask: Tensor
    """(B, T, S + P + T) bool, true where a query sees a key."""
    turns: Tensor | None
    """(S + P + T, 2, d/2) cosines and sines of rotary positions, or None."""


class Shared(NamedTuple):
    """A past of S inputs, on which B / R rows each look back; the first B / R on the first, and so on."""

    keys: Tensor
    """(R, heads, S, d), turned already; contiguous, as products by row and head read it."""
    values: Tensor
    """(R, heads, S, d)"""


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

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, sight: Sight, shared: Shared | None = None
    ) -> Mixed:
        """(B, T, D) after earlier keys and values (B, P, D), and those that are shared. Keys are kept unturned:
        positions are those within what is seen now, so that nothing grows with the length of an episode. After a shared
        past, whose end is near, positions count from its beginning, and keys are turned once."""
        query, key, value = self.qkv(x).chunk(3, -1)
        # rounded once, where it is read: turned or not, the cache holds what was computed
        key = key.to(keys.dtype)
        if shared is not None and sight.turns is not None:
            key = self._turn(key, sight.turns[-x.shape[1] :])
        keys = torch.cat([keys, key], 1)
        values = torch.cat([values, value.to(values.dtype)], 1)
        q, k, v = self._split(query), self._split(keys), self._split(values)
        if sight.turns is not None:
            q = turned(q, sight.turns[-x.shape[1] :])
            k = k if shared is not None else turned(k, sight.turns[-keys.shape[1] :])
        k, v = k.to(q.dtype), v.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        if shared is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=sight.mask.unsqueeze(1), dropout_p=dropout)
        else:
            y = self._attend_shared(q, k, v, sight.mask, shared, dropout)
        return Mixed(self.out(_joined(y)), keys, values)

    def _turn(self, keys: Tensor, turns: Tensor) -> Tensor:
        """Keys (B, n, D) turned by their positions' angles (n, 2, d/2)."""
        return _joined(turned(self._split(keys), turns))

    def share(self, keys: Tensor, values: Tensor, turns: Tensor | None) -> Shared:
        """Keys and values (R, S, D) at positions with these turns (S, 2, d/2), to be shared."""
        k = self._split(keys)
        k = k if turns is None else turned(k, turns)
        return Shared(k.contiguous(), self._split(values).contiguous())

    def unshare(
        self, shared: Shared, keys: Tensor, values: Tensor, turns: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The last S of what was shared and of the keys and values (B, P, D) that came since: (B, S, D), not turned.

        Args: turns (S, 2, d/2), of positions P to S + P - 1."""
        n, gone = keys.shape[0] // shared.keys.shape[0], keys.shape[1]
        before, seen = (_joined(x[:, :, gone:]).repeat_interleave(n, 0) for x in shared)
        keys, values = torch.cat([before, keys], 1), torch.cat([seen, values], 1)
        return keys if turns is None else self._turn(keys, torch.stack([turns[:, 0], -turns[:, 1]], 1)), values

    def _attend_shared(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, shared: Shared, dropout: float
    ) -> Tensor:
        """(B, heads, T, d): what is shared is read where it lies, by all the rows that share it in one product."""
        lead, _, past, _ = shared.keys.shape

        def gathered(y: Tensor) -> Tensor:
            """(B, heads, T, n) -> (R, heads, B / R * T, n)"""
            return y.unflatten(0, (lead, -1)).transpose(1, 2).flatten(2, 3)

        def spread(y: Tensor) -> Tensor:
            return y.unflatten(2, (-1, q.shape[2])).transpose(1, 2).flatten(0, 1)

        before, seen = shared.keys.to(q.dtype), shared.values.to(q.dtype)
        scores = torch.cat([spread(gathered(q) @ before.mT), q @ k.mT], -1).float() / math.sqrt(q.shape[-1])
        weight = torch.softmax(scores.masked_fill(~mask.unsqueeze(1), -torch.inf), -1)
        weight = F.dropout(weight, dropout).to(q.dtype) if dropout else weight.to(q.dtype)
        return spread(gathered(weight[..., :past]) @ seen) + weight[..., past:] @ v

    def _split(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, heads, n, d)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


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

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, sight: Sight, shared: Shared | None = None
    ) -> Mixed:
        """See :meth:`Attention.forward`; the residual stream is float32."""
        y, keys, values = self.attention(x if self.is_post else self.attention_norm(x), keys, values, sight, shared)
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


def _joined(x: Tensor) -> Tensor:
    """(B, heads, n, d) -> (B, n, D)"""
    return x.transpose(1, 2).flatten(-2)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """(B, heads, n, d) with the pairs (x_i, x_{i+d/2}) turned by their position's angles (n, 2, d/2)."""
    cos, sin = turns.unbind(1)
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
