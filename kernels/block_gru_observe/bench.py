"""The observe loop at sizes of this project, forward alone and with its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldmodel.kernels.block_gru_observe import Weights, fused, reference
from worldmodel.kernels.passes import Case, Cases, size

TESTS = ("test_block_gru_observe.py",)

SIZES = {
    "nano, 8 x 32": (8, 32, 128, 64, 4, 16, 8),
    "1m, 8 x 32": (8, 32, 512, 64, 8, 32, 4),
    "12m, 16 x 64": (16, 64, 2048, 256, 8, 32, 16),
}
"""Rows, steps, deter, hidden, blocks, groups, classes."""


def cases(device: torch.device) -> Cases:
    """12m on GPUs only: a CPU takes seconds for it. Operations are those of the matrix products; with gradients there
    are three times as many. Weights are read once in a pass, as if they stayed where they are used."""
    out: Cases = {}
    implementations: dict[str, Any] = {"reference": reference.observe, "fused": fused.observe}
    if device.type == "cuda":
        implementations["reference, compiled"] = torch.compile(reference.observe)
    for name, shape in SIZES.items():
        if device.type == "cpu" and name.startswith("12m"):
            continue
        inputs, weights = _arguments(device, *shape)
        rows, time = shape[:2]
        products = 2 * rows * time * sum(weight.numel() for weight in weights if weight.ndim > 1)
        with torch.no_grad():
            read, written = size([*inputs, *weights]), size(implementations["fused"](*inputs, weights, unimix=0.01))
        forward = {who: _forward(observe, inputs, weights) for who, observe in implementations.items()}
        both = {who: _both(observe, inputs, weights) for who, observe in implementations.items()}
        out[f"{name}, forward"] = Case(forward, read + written, products)
        out[f"{name}, forward and backward"] = Case(both, 3 * read + 2 * written, 3 * products)
    return out


def _arguments(
    device: torch.device, rows: int, time: int, size: int, hidden: int, blocks: int, groups: int, classes: int
) -> tuple[list[Tensor], Weights]:
    def normal(*shape: int, fan_in: int = 1) -> Tensor:
        return (torch.randn(*shape, device=device) * fan_in**-0.5).requires_grad_()

    own, flat = size // blocks, groups * classes
    weights = Weights(
        deter=normal(hidden, size, fan_in=size), deter_bias=normal(hidden), deter_scale=normal(hidden),
        stoch=normal(hidden, flat, fan_in=groups), stoch_bias=normal(hidden), stoch_scale=normal(hidden),
        mix=normal(blocks, own + 3 * hidden, own, fan_in=own + 3 * hidden), mix_bias=normal(size),
        mix_scale=normal(size),
        gates=normal(blocks, own, 3 * own, fan_in=own), gates_bias=normal(3 * size),
        posterior=normal(hidden, size, fan_in=size), posterior_scale=normal(hidden),
        logits=normal(flat, hidden, fan_in=hidden), logits_bias=normal(flat),
    )
    keep = (torch.rand(time, rows, device=device) > 0.02).float()
    deter, stoch = torch.zeros(rows, size, device=device), torch.zeros(rows, groups, classes, device=device)
    noise = torch.rand(time, rows, groups, device=device)
    return [deter, stoch, keep, normal(time, rows, hidden), normal(time, rows, hidden), noise], weights


def _forward(observe: Callable[..., Any], inputs: list[Tensor], weights: Weights) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            observe(*inputs, weights, unimix=0.01)

    return call


def _both(observe: Callable[..., Any], inputs: list[Tensor], weights: Weights) -> Callable[[], object]:
    leaves = [x for x in (*inputs, *weights) if x.requires_grad]

    def call() -> None:
        deters, stochs, logits = observe(*inputs, weights, unimix=0.01)
        torch.autograd.grad(deters.sum() + (stochs * logits).sum(), leaves)

    return call
