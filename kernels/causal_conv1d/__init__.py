"""``causal_conv1d``: the short convolution before a Mamba scan, with resets and a state."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.causal_conv1d import reference
from worldmodel.kernels.dispatch import backend


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """y_t = SiLU(bias + sum_k weight_k x_{t-W+1+k}) per channel, over the inputs of t's own segment.

    Differentiable in every floating-point argument, through both outputs.

    Args:
        x: (B, L, D), L at least 1.
        weight: (D, W); the last column multiplies the present input.
        bias: (D,).
        segments: (B, L) int, from ``segments.segment_ids(is_first)``; none means that no episode begins in here.
        state: (B, W-1, D), the inputs before the sequence, the latest last, seen by segment 0 alone; none is 0.
        silu: without, y is the plain convolution.

    Returns:
        y (B, L, D), and the state after the sequence (B, W-1, D): the inputs of other segments in it are 0.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, length, channels = x.shape
    width = weight.shape[1]
    segments = torch.zeros(batch, length, dtype=torch.int32, device=x.device) if segments is None else segments
    state = x.new_zeros(batch, width - 1, channels) if state is None else state
    for name, tensor, shape in (
        ("weight", weight, (channels, width)), ("bias", bias, (channels,)), ("segments", segments, (batch, length)),
        ("state", state, (batch, width - 1, channels)),
    ):
        if tensor.shape != shape:
            raise ValueError(
                f"causal_conv1d: {name} must be {shape} beside x {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
    if not length:
        raise ValueError("causal_conv1d: needs at least one step")
    if backend("causal_conv1d", x) == "reference":
        return reference.causal_conv1d(x, weight, bias, segments, state, silu=silu)
    from worldmodel.kernels.causal_conv1d.triton import causal_conv1d_op

    return causal_conv1d_op(x, weight, bias, segments.int(), state, silu)


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, *, reset: Tensor | None = None, silu: bool = True
) -> tuple[Tensor, Tensor]:
    """``causal_conv1d`` of one step: x (B, D), state (B, W-1, D), reset (B,) bool; y (B, D) and the next state."""
    if backend("causal_conv1d", x) == "torch":
        return reference.causal_conv1d_step(x, weight, bias, state, reset, silu=silu)
    segments = None if reset is None else reset[:, None].int()
    y, state = causal_conv1d(x[:, None], weight, bias, segments=segments, state=state, silu=silu)
    return y[:, 0], state
