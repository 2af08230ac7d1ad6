"""One imagined step of a Mamba-2 layer of d_model 512."""

from __future__ import annotations

import torch

from worldmodel.kernels.passes import Cases, dtypes, passes
from worldmodel.kernels.ssd_step import ssd_step

TESTS = ("test_ssd.py",)


def cases(device: torch.device) -> Cases:
    """By B and state. A number of the state takes 5 operations."""
    out: Cases = {}
    for batch, size in ((16, 16), (1024, 16), (1024, 64)):
        for dtype in dtypes(device):
            x = torch.randn(batch, 16, 64, device=device, dtype=dtype)
            B, C = torch.randn(2, batch, 1, size, device=device, dtype=dtype)
            dt, state = torch.rand(batch, 16, device=device), torch.randn(batch, 16, 64, size, device=device)
            A, D = -torch.arange(1.0, 17, device=device), torch.ones(16, device=device)
            row, arguments = f"{batch}, N {size}, {str(dtype)[6:]}", (x, dt, A, B, C, D, state)
            out |= passes(row, ssd_step, arguments, device, operations=5 * size * x.numel(), kernel="ssd_step")
    return out
