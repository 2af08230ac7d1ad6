"""A critic's loss on a dream, with its gradient."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from worldmodel.kernels.passes import Cases, passes
from worldmodel.kernels.twohot_loss import twohot_loss

TESTS = ("test_twohot_loss.py",)


def cases(device: torch.device) -> Cases:
    """By rows; a logit takes a maximum, a difference, an exponential and a sum."""

    def loss(logits: Tensor, target: Tensor, bins: Tensor) -> tuple[Tensor]:
        return (twohot_loss(logits, bins, target),)

    out: Cases = {}
    bins = torch.linspace(-20, 20, 255, device=device)
    for rows in (3840, 15360):
        target, logits = 5 * torch.randn(rows, device=device), torch.randn(rows, 255, device=device)
        call = functools.partial(loss, target=target, bins=bins)
        work = 4 * logits.numel()
        out |= passes(f"{rows} x 255", call, [logits], device, operations=work, constants=[target])
    return out
