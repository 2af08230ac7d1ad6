"""The scan of ``reference.py`` over chunks that run side by side: what runs on CPUs, and what a compiler gets on GPUs.

A state is linear in the one that its chunk begins with: h_t = p_t H + g_t, where p_t is the product of the chunk's
decays so far and g_t the state from 0. Both take as many turns of a loop as a chunk has steps, for all chunks at once;
then the states at chunk borders are a recurrence over L/Q chunks. A reset is a decay of 0: products are exact, where
sums of logarithms would not be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.segments import goes_on

CHUNK = 16
"""Steps per chunk."""


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, D) in the dtype of x, and the state after every step, (B, L, D, N), at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    u, dt, A, B, C, D, state = (tensor.to(dtype) for tensor in (x, dt, A, B, C, D, state))
    length = x.shape[1]
    size = min(CHUNK, length)
    pad = -length % size

    def split(tensor: Tensor, filler: float) -> list[Tensor]:
        """(B, L, D, N) to Q of (B, chunks, D, N)."""
        if pad:
            tensor = torch.cat([tensor, tensor.new_full((tensor.shape[0], pad, *tensor.shape[2:]), filler)], 1)
        return list(tensor.unflatten(1, (-1, size)).unbind(2))

    decay = split(torch.exp(dt.unsqueeze(3) * A) * goes_on(segments)[:, :, None, None], 1.0)
    added = split((dt * u).unsqueeze(3) * B.unsqueeze(2), 0.0)
    product, local = [decay[0]], [added[0]]
    for q in range(1, size):
        product.append(decay[q] * product[-1])
        local.append(torch.addcmul(added[q], decay[q], local[-1]))
    starts = [state]
    for c in range(decay[0].shape[1] - 1):
        starts.append(torch.addcmul(local[-1][:, c], product[-1][:, c], starts[-1]))
    # (B, chunks, Q, D, N)
    states = torch.addcmul(torch.stack(local, 2), torch.stack(product, 2), torch.stack(starts, 1).unsqueeze(2))
    states = states.flatten(1, 2)[:, :length]
    y = (states @ C.unsqueeze(3)).squeeze(3) + D * u
    return y.to(x.dtype), states
