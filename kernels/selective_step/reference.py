"""One step of Mamba-1's recurrence: the specification of ``selective_step``, and what ``selective_scan`` repeats."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reset: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (B, D) in the dtype of x, and the next state (B, D, N), at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    u, dt, A, B, C, D, state = (tensor.to(dtype) for tensor in (x, dt, A, B, C, D, state))
    state = state.masked_fill(reset[:, None, None], 0)
    state = torch.exp(dt[:, :, None] * A) * state + (dt * u)[:, :, None] * B[:, None]
    y = (state * C[:, None]).sum(2) + D * u
    return y.to(x.dtype), state
