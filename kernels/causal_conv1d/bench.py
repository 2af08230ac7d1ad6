"""The convolution before a Mamba-2 scan of d_model 512 and a state of 16: 1056 channels."""

from __future__ import annotations

import functools

import torch

from worldmodel.kernels.causal_conv1d import causal_conv1d
from worldmodel.kernels.passes import Cases, dtypes, passes

TESTS = ("test_causal_conv1d.py",)


def cases(device: torch.device) -> Cases:
    """By B x L; L = 1 is a step. A number takes 4 products and sums, and SiLU 4 operations."""
    out: Cases = {}
    for batch, length in ((16, 64), (1024, 1)):
        for dtype in dtypes(device):
            x = torch.randn(batch, length, 1056, device=device, dtype=dtype)
            weight, bias = torch.randn(1056, 4, device=device), torch.randn(1056, device=device)
            state = torch.zeros(batch, 3, 1056, device=device, dtype=dtype)
            segments = (torch.rand(batch, length, device=device) < 0.02).cumsum(1).int()
            call = functools.partial(causal_conv1d, segments=segments, state=state)
            row = f"{batch} x {length}, {str(dtype)[6:]}"
            constants, work = (segments, state), 12 * x.numel()
            out |= passes(row, call, (x, weight, bias), device, operations=work, constants=constants)
    return out
