"""Observing with a Mamba-2 layer: d_model 256 and 512, small and large states, with every state and without."""

from __future__ import annotations

import functools

import torch

from worldmodel.kernels.passes import Cases, dtypes, passes
from worldmodel.kernels.ssd_scan import ssd_scan

TESTS = ("test_ssd.py",)


def cases(device: torch.device) -> Cases:
    """By B x L, heads and state. A number of the state takes 5 operations a step: as a recurrence, the fewest."""
    out: Cases = {}
    shapes = ((16, 64, 8, 16, False), (16, 64, 16, 16, False), (16, 64, 16, 128, False), (16, 64, 16, 16, True))
    for batch, length, heads, size, states in shapes:
        for dtype in dtypes(device):
            x = torch.randn(batch, length, heads, 64, device=device, dtype=dtype)
            B, C = torch.randn(2, batch, length, 1, size, device=device, dtype=dtype)
            dt = torch.rand(batch, length, heads, device=device)
            A, D = -torch.arange(1.0, heads + 1, device=device), torch.ones(heads, device=device)
            segments = (torch.rand(batch, length, device=device) < 0.02).cumsum(1).int()
            state = torch.zeros(batch, heads, 64, size, device=device)
            call = functools.partial(ssd_scan, segments=segments, state=state, return_states=states)
            row = f"{batch} x {length}, H {heads}, N {size}{', every state' * states}, {str(dtype)[6:]}"
            arguments = (x, dt, A, B, C, D)
            out |= passes(
                row, call, arguments, device, operations=5 * size * x.numel(), constants=(segments, state),
                kernel="ssd_scan",
            )
    return out
