"""One imagined step of a Mamba-1 layer of d_model 512."""

from __future__ import annotations

import torch

from worldmodel.kernels.passes import Cases, dtypes, passes
from worldmodel.kernels.selective_step import selective_step

TESTS = ("test_selective.py",)


def cases(device: torch.device) -> Cases:
    """By B. A number of the state takes 7 operations."""
    out: Cases = {}
    for batch in (16, 1024):
        for dtype in dtypes(device):
            x = torch.randn(batch, 1024, device=device, dtype=dtype)
            B, C = torch.randn(2, batch, 16, device=device, dtype=dtype)
            dt, A = torch.rand(batch, 1024, device=device), -torch.rand(1024, 16, device=device)
            D, state = torch.ones(1024, device=device), torch.randn(batch, 1024, 16, device=device)
            row, arguments = f"{batch}, N 16, {str(dtype)[6:]}", (x, dt, A, B, C, D, state)
            out |= passes(row, selective_step, arguments, device, operations=7 * 16 * x.numel())
    return out
