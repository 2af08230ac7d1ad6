"""One update of 100 tensors, slow copy included."""

from __future__ import annotations

from collections.abc import Callable

import torch

from worldmodel.kernels import dispatch
from worldmodel.kernels.laprop_agc import Rule, make_layout, step


def cases(device: torch.device) -> dict[str, dict[str, Callable[[], object]]]:
    """The reference; on a GPU it compiled, and Triton."""
    out: dict[str, dict[str, Callable[[], object]]] = {}
    for millions in (1, 10):
        size = millions * 10_000
        flat, nu, mu = (torch.zeros(100 * size, device=device) for _ in range(3))
        flat, grad = flat.normal_(), torch.randn_like(flat)
        slow, count = flat[: 10 * size].clone(), torch.zeros((), device=device)
        layout, rule = make_layout([size] * 100, device), Rule(lr=1e-5, slow_rate=0.02)
        arguments = (flat, grad, nu, mu, count, slow, torch.tensor(True, device=device), layout, rule)

        def call(arguments: tuple[object, ...] = arguments) -> object:
            return step(*arguments)  # type: ignore[arg-type]

        out[f"{millions}M parameters"] = dispatch.implementations(call, device)
    return out
