"""The scans of Mamba by the package mamba-ssm (Dao and Gu), for comparison: ``WM_KERNELS=mamba_ssm``, on a GPU.

The only file that imports the package, and only when one of these functions is called. What the package does not have
is said in a sentence or computed by the reference; nothing here is traced by ``torch.compile`` as one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.kernels.ssd_scan import chunked
from worldmodel.kernels.ssd_step import reference

CHUNK = 64
"""Steps in a chunk: their default of 256 wastes work on sequences as short as a world model's."""


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor,
    *, return_states: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``kernels.ssd_scan``. The package has no state of every step: those come from the reference, beside the scan,
    so that only a scan without them tells how fast the package is."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # pyright: ignore[reportMissingImports]

    # its kernels give the state before the sequence to segment 0, as ours do
    y, final = mamba_chunk_scan_combined(
        x, dt, A, B, C, CHUNK, D=D, initial_states=state, seq_idx=segments.int(), return_final_states=True
    )
    if not return_states:
        return y, final, None
    states = chunked.ssd_scan(x, dt, A, B, C, D, segments, state, return_states=True)[2]
    return y, final, states


def ssd_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reset: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``kernels.ssd_step``. The package's step has no gradient: where one is wanted, the reference runs."""
    arguments = (x, dt, A, B, C, D, state)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments):
        return reference.ssd_step(x, dt, A, B, C, D, reset, state)
    from mamba_ssm.ops.triton.selective_state_update import (  # pyright: ignore[reportMissingImports]
        selective_state_update,
    )

    # it works in place, and tells one number a head by strides of 0
    after = state.clone() if reset is None else torch.where(reset[:, None, None, None], 0.0, state)
    heads, width, size = state.shape[1:]
    y = selective_state_update(
        after, x, dt[:, :, None].expand(-1, -1, width), A[:, None, None].expand(-1, width, size), B, C,
        D=D[:, None].expand(-1, width), dt_bias=A.new_zeros(heads)[:, None].expand(-1, width),
    )
    return y, after


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, is_plain: bool
) -> tuple[Tensor, Tensor]:
    """As ``kernels.selective_scan``, where nothing is asked for besides the scan from a state of zeros (``is_plain``).
    No gradient goes through the last state."""
    if not is_plain:
        raise UserError(
            "mamba-ssm's selective_scan knows neither resets nor a state before the sequence, and gives no state of "
            "every step; a Mamba-1 core needs WM_KERNELS=auto, reference or triton"
        )
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    u, delta, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (x, dt.to(x.dtype), B, C))
    y, final = selective_scan_fn(u, delta, A, B, C, D, return_last_state=True)
    return y.transpose(1, 2), final
