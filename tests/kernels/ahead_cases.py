"""Calls with realistic shapes, forward and backward, for ``ahead``: one per operation, type and variant."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from tests.kernels import test_causal_conv1d, test_selective, test_ssd

FLOAT, HALF = torch.float32, torch.bfloat16


def _run(module: object, backward_of: str, *make: object, **kwargs: object) -> None:
    """Forward and backward of what the tests of a module call, with its own inputs."""
    inputs: list[Tensor] = [tensor.requires_grad_() for tensor in module.make(*make)]  # type: ignore[attr-defined]
    segments = torch.zeros(inputs[0].shape[:2], dtype=torch.int32)
    outputs = getattr(module, backward_of)(segments, **kwargs)(*inputs)
    sum(out.float().sum() for out in outputs).backward()


CASES: list[Callable[[], None]] = [
    *(
        functools.partial(_run, test_ssd, "scanned", 2, length, 2, 64, 1, size, dtype, return_states=states)
        for length, size, dtype, states in (
            (64, 16, HALF, False), (64, 16, FLOAT, False), (64, 128, HALF, False), (200, 64, HALF, False),
            (64, 16, HALF, True), (1, 16, HALF, False),
        )
    ),
    *(
        functools.partial(_run, test_selective, "scanned", 2, length, 1024, size, HALF, return_states=states)
        for length, size, states in ((64, 16, False), (64, 128, False), (64, 16, True), (1, 16, False))
    ),
    *(
        functools.partial(_run, test_causal_conv1d, "convolved", 2, length, 1056, 4, dtype, silu=True)
        for length, dtype in ((64, HALF), (1, FLOAT))
    ),
]
