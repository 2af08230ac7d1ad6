"""One step of Mamba-2's recurrence: the specification of ``ssd_step``, and what ``ssd_scan`` repeats."""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reset: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (B, H, P) in the dtype of x, and the next state (B, H, P, N), at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    heads_per_group = x.shape[1] // B.shape[1]
    u, dt, A, D, state = (tensor.to(dtype) for tensor in (x, dt, A, D, state))
    # (B, G, N) -> (B, H, 1, N)
    B, C = (tensor.to(dtype).repeat_interleave(heads_per_group, 1).unsqueeze(2) for tensor in (B, C))
    if reset is not None:
        state = state.masked_fill(reset[:, None, None, None], 0)
    decay = torch.exp(dt * A)
    state = (decay[:, :, None, None] * state).addcmul_((dt[:, :, None] * u).unsqueeze(3), B)
    y = (state @ C.transpose(2, 3)).squeeze(3) + D[:, None] * u
    return y.to(x.dtype), state
