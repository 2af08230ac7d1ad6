"""Observing with a Mamba-1 layer of d_model 512."""

from __future__ import annotations

import functools

import torch

from worldmodel.kernels.passes import Cases, dtypes, passes
from worldmodel.kernels.selective_scan import selective_scan

TESTS = ("test_selective.py",)


def cases(device: torch.device) -> Cases:
    """By B x L, state, with every state and without. A number of the state takes 7 operations a step."""
    out: Cases = {}
    for batch, length, size, states in ((16, 64, 16, False), (16, 64, 128, False), (16, 64, 16, True)):
        if device.type == "cpu" and size > 16:
            continue
        for dtype in dtypes(device):
            x = torch.randn(batch, length, 1024, device=device, dtype=dtype)
            B, C = torch.randn(2, batch, length, size, device=device, dtype=dtype)
            dt, A = torch.rand(batch, length, 1024, device=device), -torch.rand(1024, size, device=device)
            D, state = torch.ones(1024, device=device), torch.zeros(batch, 1024, size, device=device)
            segments = (torch.rand(batch, length, device=device) < 0.02).cumsum(1).int()
            call = functools.partial(selective_scan, segments=segments, state=state, return_states=states)
            row = f"{batch} x {length}, D 1024, N {size}{', every state' * states}, {str(dtype)[6:]}"
            arguments = (x, dt, A, B, C, D)
            out |= passes(
                row, call, arguments, device, operations=7 * size * x.numel(), constants=(segments, state),
                kernel="selective_scan",
            )
    return out
