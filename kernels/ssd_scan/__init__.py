"""``ssd_scan``: the sequence mixer of Mamba-2, with resets and states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.kernels.dispatch import backend
from worldmodel.kernels.ssd_scan import chunked


class Scanned(NamedTuple):
    """What ``ssd_scan`` returns."""

    y: Tensor
    """(B, L, H, P), in the dtype of x."""
    final: Tensor
    """(B, H, P, N) float32: the state after the last step."""
    states: Tensor | None
    """(B, L, H, P, N) float32: the state after every step, if asked for."""


def ssd_scan(
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
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T and y_t = h_t C_t + D x_t, per head (Mamba-2, Dao and Gu 2024).

    Differentiable in every floating-point argument, through ``y``, ``final`` and ``states``.

    Args:
        x: (B, L, H, P), L at least 1.
        dt: (B, L, H), step sizes, not negative: after softplus.
        A: (H,), negative.
        B: (B, L, G, N); H/G heads share a group.
        C: (B, L, G, N).
        D: (H,), the skip; none is 0.
        segments: (B, L) int, from ``segments.segment_ids(is_first)``; none means that no episode begins in here.
        state: (B, H, P, N), the state before the sequence, seen by segment 0 alone; none is 0.
        return_states: also give the state after every step. Costs B L H P N floats.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, length, heads, width = x.shape
    groups, size = B.shape[2:]
    D = x.new_zeros(heads, dtype=torch.float32) if D is None else D
    segments = torch.zeros(batch, length, dtype=torch.int32, device=x.device) if segments is None else segments
    if state is None:
        state = x.new_zeros(batch, heads, width, size, dtype=torch.promote_types(x.dtype, torch.float32))
    for name, tensor, shape in (
        ("dt", dt, (batch, length, heads)), ("A", A, (heads,)), ("B", B, (batch, length, groups, size)),
        ("C", C, (batch, length, groups, size)), ("D", D, (heads,)), ("segments", segments, (batch, length)),
        ("state", state, (batch, heads, width, size)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"ssd_scan: {name} must be {shape} beside x {tuple(x.shape)}, got {tuple(tensor.shape)}")
    if heads % groups or not length:
        raise ValueError(f"ssd_scan: needs a step and heads in equal groups, got L {length}, H {heads}, G {groups}")
    chosen = backend("ssd_scan", x)
    if chosen == "mamba_ssm":
        from worldmodel.kernels import mamba_ssm

        return Scanned(*mamba_ssm.ssd_scan(x, dt, A, B, C, D, segments, state, return_states=return_states))
    if chosen == "reference":
        return Scanned(*chunked.ssd_scan(x, dt, A, B, C, D, segments, state, return_states=return_states))
    from worldmodel.kernels.ssd_scan.triton import ssd_scan_op

    y, final, states = ssd_scan_op(x, dt, A, B, C, D, segments.int(), state, return_states)
    return Scanned(y, final, states if return_states else None)
