"""What the tests of sequence kernels share: random inputs with random resets, and comparing outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]


def is_first(batch: int, length: int, seed: int = 0) -> Tensor:
    """(B, L) bool: row 0 begins at 0, row 1 on the edge of a chunk and at the last step, all of them anywhere."""
    first = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.1
    first[0, 0], first[1:, 0] = True, False
    first[1, -1] = length > 1
    first[1, 16 : length : 16] = True
    return first


def rms_ratio(ours: Tensor, theirs: Tensor) -> float:
    """The root mean square of the difference over that of the value, or over 0.001 where that is less."""
    error, size = (ours.double() - theirs.double()).square().mean(), theirs.double().square().mean()
    return float((error / size.clamp(min=1e-6)).sqrt())


def gradients(call: Callable[..., Outputs], inputs: Sequence[Tensor], seed: int = 1) -> tuple[Outputs, Outputs]:
    """Outputs, and the gradients of a random weighing of all of them with respect to every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outputs = tuple(call(*leaves))
    generator = torch.Generator().manual_seed(seed)
    total = sum((out.float() * torch.randn(out.shape, generator=generator).to(out.device)).sum() for out in outputs)
    return tuple(out.detach() for out in outputs), torch.autograd.grad(total, leaves)


def assert_same(
    ours: Callable[..., Outputs], theirs: Callable[..., Outputs], inputs: Sequence[Tensor], limit: float = 1e-5
) -> None:
    """Every output and every gradient of ``ours`` is that of ``theirs``, to ``limit`` of its root mean square."""
    (got, got_grads), (want, want_grads) = gradients(ours, inputs), gradients(theirs, inputs)
    for name, values, wanted in (("output", got, want), ("gradient", got_grads, want_grads)):
        assert len(values) == len(wanted)
        for index, (value, expected) in enumerate(zip(values, wanted)):
            assert value.shape == expected.shape and value.dtype == expected.dtype, f"{name} {index}"
            assert value.isfinite().all(), f"{name} {index} is not finite"
            assert rms_ratio(value, expected) <= limit, f"{name} {index} differs: {rms_ratio(value, expected):.2e}"
