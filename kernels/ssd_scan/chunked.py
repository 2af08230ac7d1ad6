"""The scan of ``reference.py`` by matrix products over chunks: what runs on CPUs, and what a compiler gets on GPUs.

Mamba-2 (Dao and Gu 2024), section 6, with resets: inside a chunk every output is a masked attention over the chunk's
inputs, and the states at chunk borders are a recurrence over L/Q chunks instead of L steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16
"""Steps per chunk, for CPUs: longer chunks waste work above the diagonal, shorter ones loop more."""


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    segments: Tensor,
    state: Tensor,
    *,
    return_states: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs (B, L, H, P), the last state (B, H, P, N), and with ``return_states`` all of them, (B, L, H, P, N)."""
    length, heads = x.shape[1:3]
    groups = B.shape[2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    chunks = -(-length // CHUNK)
    pad = chunks * CHUNK - length

    def split(tensor: Tensor) -> Tensor:
        """(B, L, K, ...) -> (B, chunks, K, Q, ...); steps of the padding have dt = 0 and change nothing."""
        tensor = F.pad(tensor.to(dtype), (*(0, 0) * (tensor.ndim - 2), 0, pad))
        return tensor.unflatten(1, (chunks, CHUNK)).transpose(2, 3)

    def per_head(tensor: Tensor) -> Tensor:
        """(B, chunks, G, ...) -> (B, chunks, H, ...)"""
        return tensor.repeat_interleave(heads // groups, 2) if groups > 1 else tensor

    # padding belongs to the last step's segment, so that the last state passes through it; (B, chunks, 1, Q)
    seg = torch.cat([segments, segments[:, -1:].expand(-1, pad)], 1).unflatten(1, (chunks, 1, CHUNK))
    last = seg[..., -1:]
    before = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)
    steps = split(dt)
    cum = (steps * A.to(dtype)[:, None]).cumsum(3)
    u = split(x)
    inputs = steps.unsqueeze(4) * u
    B, C = split(B), split(C)

    # decay from step s to step t of one segment; the clamp spares the masked half an overflow
    causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).tril()
    linked = causal & (seg.unsqueeze(4) == seg.unsqueeze(3))
    decay = (cum.unsqueeze(4) - cum.unsqueeze(3)).clamp(max=0).exp() * linked
    from_start = cum.clamp(max=0).exp() * (seg == before)
    to_end = (cum[..., -1:] - cum).clamp(max=0).exp() * (seg == last)

    # what each chunk adds to the state, then the states that chunks begin with: (B, chunks, H, P, N)
    added = (inputs * to_end.unsqueeze(4)).transpose(3, 4) @ per_head(B)
    through = from_start[..., -1, None, None]
    starts, state = [], state.to(dtype)
    for c in range(chunks):
        starts.append(state)
        state = through[:, c] * state + added[:, c]
    start = torch.stack(starts, 1)

    scores = per_head(C @ B.transpose(3, 4)) * decay
    y = scores @ inputs + from_start.unsqueeze(4) * (per_head(C) @ start.transpose(3, 4))
    y = y + D.to(dtype)[:, None, None] * u
    y = y.transpose(2, 3).flatten(1, 2)[:, :length].to(x.dtype)
    if not return_states:
        return y, state, None
    # the steps of a chunk one by one, all chunks at once: as matrix products the outer products would all be stored
    one_step = torch.cat([from_start[..., :1], decay.diagonal(-1, 3, 4)], 3)
    B, hidden, states = per_head(B), start, []
    for q in range(CHUNK):
        added = inputs[:, :, :, q, :, None] * B[:, :, :, q, None, :]
        hidden = one_step[:, :, :, q, None, None] * hidden + added
        states.append(hidden)
    # (B, chunks, Q, H, P, N) -> (B, L, H, P, N)
    return y, state, torch.stack(states, 2).flatten(1, 2)[:, :length]
