"""``selective_scan``: the sequence mixer of Mamba-1, with resets and states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.kernels.dispatch import backend
from worldmodel.kernels.selective_scan import chunked


class Scanned(NamedTuple):
    """What ``selective_scan`` returns."""

    y: Tensor
    """(B, L, D), in the dtype of x."""
    final: Tensor
    """(B, D, N) float32: the state after the last step."""
    states: Tensor | None
    """(B, L, D, N) float32: the state after every step, if asked for."""


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    return_states: bool = False,
) -> Scanned:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t and y_t = h_t C_t + D x_t, per channel (Mamba, Gu and Dao 2023, eq. 2).

    Differentiable in every floating-point argument, through ``y``, ``final`` and ``states``.

    Args:
        x: (B, L, D), L at least 1.
        dt: (B, L, D), step sizes, not negative: after softplus.
        A: (D, N), negative.
        B: (B, L, N).
        C: (B, L, N).
        D: (D,), the skip; none is 0.
        segments: (B, L) int, from ``segments.segment_ids(is_first)``; none means that no episode begins in here.
        state: (B, D, N), the state before the sequence, seen by segment 0 alone; none is 0.
        return_states: also give the state after every step. Costs B L D N floats.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, length, channels = x.shape
    size, begins = B.shape[2], segments is None and state is None
    D = x.new_zeros(channels, dtype=torch.float32) if D is None else D
    segments = torch.zeros(batch, length, dtype=torch.int32, device=x.device) if segments is None else segments
    if state is None:
        state = x.new_zeros(batch, channels, size, dtype=torch.promote_types(x.dtype, torch.float32))
    for name, tensor, shape in (
        ("dt", dt, x.shape), ("A", A, (channels, size)), ("B", B, (batch, length, size)),
        ("C", C, (batch, length, size)), ("D", D, (channels,)), ("segments", segments, (batch, length)),
        ("state", state, (batch, channels, size)),
    ):
        if tensor.shape != shape:
            raise ValueError(
                f"selective_scan: {name} must be {tuple(shape)} beside x {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
    if not length:
        raise ValueError("selective_scan: needs at least one step")
    chosen = backend("selective_scan", x)
    if chosen == "mamba_ssm":
        from worldmodel.kernels import mamba_ssm

        is_plain = begins and not return_states
        return Scanned(*mamba_ssm.selective_scan(x, dt, A, B, C, D, is_plain=is_plain), None)
    if chosen == "reference":
        y, states = chunked.selective_scan(x, dt, A, B, C, D, segments, state)
        return Scanned(y, states[:, -1], states if return_states else None)
    from worldmodel.kernels.selective_scan.triton import selective_scan_op

    y, final, states = selective_scan_op(x, dt, A, B, C, D, segments.int(), state, return_states)
    return Scanned(y, final, states if return_states else None)
