"""What the benchmarks of kernels are made of: cases with the work that they are, and both passes of an operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.kernels import dispatch


class Case(NamedTuple):
    """One thing to time, by everybody who can do it."""

    calls: dict[str, Callable[[], object]]
    """By implementation."""
    moved: int
    """Bytes that have to be read and written, each input and output of a pass once: no implementation moves fewer."""
    operations: int
    """Floating-point operations of the formulas in the kernel's README; an exponential is one."""


Cases = dict[str, Case]


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """The types of activations that are timed."""
    return (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,)


def size(tensors: Sequence[Tensor | None]) -> int:
    """Bytes of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def passes(
    row: str, call: Callable[..., Sequence[Tensor | None]], inputs: Sequence[Tensor], device: torch.device, *,
    operations: int, constants: Sequence[Tensor] = (), kernel: str = "",
) -> Cases:
    """``call(*inputs)`` without gradient, and with that of the sum of all outputs.

    ``constants`` are what ``call`` reads besides. A backward pass reads inputs, constants and gradients of outputs, and
    writes gradients of inputs; its operations count as twice the ``operations`` of the forward pass. On a GPU the first
    case also has the time of a copy of as many bytes.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def forward() -> Sequence[Tensor | None]:
        with torch.no_grad():
            return call(*leaves)

    def both() -> object:
        outputs = [out for out in call(*leaves) if out is not None]
        return torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs])

    with dispatch.using("reference"):
        read, given, written = size(leaves), size(constants), size(forward())
    alone = dispatch.implementations(forward, device, kernel)
    if device.type == "cuda":
        source = torch.zeros((read + given + written) // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        alone["copy of as many bytes"] = lambda: target.copy_(source)
    return {
        f"{row}, forward": Case(alone, read + given + written, operations),
        f"{row}, forward and backward": Case(
            dispatch.implementations(both, device, kernel), 3 * read + 2 * given + 2 * written, 3 * operations
        ),
    }
