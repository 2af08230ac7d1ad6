"""What the benchmarks of the sequence kernels have in common: both passes of an operation, and the floor under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worldmodel.kernels import dispatch

Cases = dict[str, dict[str, Callable[[], object]]]


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """The types of activations that are timed."""
    return (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,)


def passes(
    row: str, call: Callable[..., Sequence[Tensor | None]], inputs: Sequence[Tensor], device: torch.device
) -> Cases:
    """``call(*inputs)`` without gradient, and with that of the sum of all outputs.

    On a GPU also the floor of the first, a copy of as many bytes as the inputs and outputs have.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def forward() -> Sequence[Tensor | None]:
        with torch.no_grad():
            return call(*leaves)

    def both() -> object:
        outputs = [out for out in call(*leaves) if out is not None]
        return torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs])

    cases = {
        f"{row}, forward": dispatch.implementations(forward, device),
        f"{row}, forward and backward": dispatch.implementations(both, device),
    }
    if device.type == "cuda":
        with dispatch.using("reference"):
            moved = [*leaves, *(out for out in forward() if out is not None)]
        source = torch.zeros(sum(t.numel() * t.element_size() for t in moved) // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        cases[f"{row}, forward"]["copy of as many bytes"] = lambda: target.copy_(source)
    return cases
