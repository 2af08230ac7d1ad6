"""One update of 100 tensors, slow copy included."""

from __future__ import annotations

import torch

from worldmodel.kernels import dispatch
from worldmodel.kernels.laprop_agc import Rule, make_layout, step
from worldmodel.kernels.passes import Case, Cases

TESTS = ("test_laprop_agc.py",)


def cases(device: torch.device) -> Cases:
    """By parameters. Each is read with its gradient for the norms, then both and two moments are read and three of them
    written: 36 bytes; 4 operations for the norms, 20 for the update."""
    out: Cases = {}
    for millions in (1, 10):
        size = millions * 10_000
        flat, nu, mu = (torch.zeros(100 * size, device=device) for _ in range(3))
        flat, grad = flat.normal_(), torch.randn_like(flat)
        slow, count = flat[: 10 * size].clone(), torch.zeros((), device=device)
        layout, rule = make_layout([size] * 100, device), Rule(lr=1e-5, slow_rate=0.02)
        arguments = (flat, grad, nu, mu, count, slow, torch.tensor(True, device=device), layout, rule)

        def call(arguments: tuple[object, ...] = arguments) -> object:
            return step(*arguments)  # type: ignore[arg-type]

        calls = dispatch.implementations(call, device)
        out[f"{millions}M parameters"] = Case(calls, 36 * flat.numel() + 8 * slow.numel(), 24 * flat.numel())
    return out
