"""A depthwise causal convolution over time: the specification of ``causal_conv1d``, and what runs on CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, segments: Tensor, state: Tensor, *, silu: bool
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, D) in the dtype of x, and the last W-1 inputs of the last segment, (B, W-1, D)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length, width = x.shape[1], weight.shape[1]
    # (B, W-1+L, D): the inputs before the sequence belong to segment 0
    inputs = torch.cat([state.to(dtype), x.to(dtype)], 1)
    owner = F.pad(segments, (width - 1, 0))
    y = bias.to(dtype).expand(x.shape)
    for k in range(width):
        seen = owner[:, k : k + length] == segments
        y = y + weight[:, k].to(dtype) * inputs[:, k : k + length] * seen[:, :, None]
    final = inputs[:, length:] * (owner[:, length:] == segments[:, -1:])[:, :, None]
    return (F.silu(y) if silu else y).to(x.dtype), final.to(state.dtype)


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, reset: Tensor | None, *, silu: bool
) -> tuple[Tensor, Tensor]:
    """The same for a sequence of one, (B, D): one product, where a sequence takes one for each weight."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if reset is not None:
        state = state.masked_fill(reset[:, None, None], 0)
    inputs = torch.cat([state.to(dtype), x.to(dtype).unsqueeze(1)], 1)
    y = bias.to(dtype) + (inputs * weight.to(dtype).t()).sum(1)
    return (F.silu(y) if silu else y).to(x.dtype), inputs[:, 1:].to(state.dtype)
