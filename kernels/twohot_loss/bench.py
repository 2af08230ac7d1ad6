"""A critic's loss on a dream, with its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch

from worldmodel.kernels import dispatch
from worldmodel.kernels.twohot_loss import twohot_loss


def cases(device: torch.device) -> dict[str, dict[str, Callable[[], object]]]:
    """The reference; on a GPU it compiled, and Triton."""
    out: dict[str, dict[str, Callable[[], object]]] = {}
    bins = torch.linspace(-20, 20, 255, device=device)
    for rows in (3840, 15360):
        logits = torch.randn(rows, 255, device=device, requires_grad=True)
        target = 5 * torch.randn(rows, device=device)

        def both(logits: torch.Tensor = logits, target: torch.Tensor = target) -> object:
            return torch.autograd.grad(twohot_loss(logits, bins, target).sum(), logits)

        out[f"{rows} x 255, forward and backward"] = dispatch.implementations(both, device)
    return out
