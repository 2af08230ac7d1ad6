"""A step's sample, and the KL of a batch, with their gradients."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from worldmodel.kernels import unimix_categorical
from worldmodel.kernels.passes import Cases, passes

SIZES = {"8 x 32, 16 x 8": (256, 16, 8), "16 x 64, 32 x 4": (1024, 32, 4), "16 x 64, 32 x 16": (1024, 32, 16)}
"""Rows, groups, classes: of nano, 1m and 12m."""
TESTS = ("test_unimix_categorical.py",)


def cases(device: torch.device) -> Cases:
    """By size. A class takes 4 operations of a softmax and 2 of the mixture; 5 more to be sampled and for the entropy,
    or, with its other, 4 for the KL."""

    def sample(logits: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(unimix_categorical.sample(logits, noise, unimix=0.01))

    def kl(posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        return unimix_categorical.balanced_kl(posterior, prior, unimix=0.01, free_nats=1.0)

    out: Cases = {}
    for name, shape in SIZES.items():
        posterior, prior = torch.randn(2, *shape, device=device)
        noise, count = torch.rand(shape[:2], device=device), posterior.numel()
        drawn = functools.partial(sample, noise=noise)
        out |= passes(f"sample, {name}", drawn, [posterior], device, operations=11 * count, constants=[noise])
        out |= passes(f"KL both ways, {name}", kl, [posterior, prior], device, operations=16 * count)
    return out
