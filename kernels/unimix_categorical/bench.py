"""A step's sample, and the KL of a batch, with their gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch

from worldmodel.kernels import dispatch, unimix_categorical

SIZES = {"8 x 32, 16 x 8": (256, 16, 8), "16 x 64, 32 x 4": (1024, 32, 4), "16 x 64, 32 x 16": (1024, 32, 16)}
"""Rows, groups, classes: of nano, 1m and 12m."""


def cases(device: torch.device) -> dict[str, dict[str, Callable[[], object]]]:
    """The reference; on a GPU it compiled, and Triton."""
    out: dict[str, dict[str, Callable[[], object]]] = {}
    for name, (rows, groups, classes) in SIZES.items():
        posterior, prior = (torch.randn(rows, groups, classes, device=device, requires_grad=True) for _ in range(2))
        noise = torch.rand(rows, groups, device=device)

        def sample(logits: torch.Tensor = posterior, noise: torch.Tensor = noise) -> object:
            drawn = unimix_categorical.sample(logits, noise, unimix=0.01)
            return torch.autograd.grad(drawn.onehot.square().sum() + drawn.entropy.sum(), logits)

        def kl(posterior: torch.Tensor = posterior, prior: torch.Tensor = prior) -> object:
            dyn, rep = unimix_categorical.balanced_kl(posterior, prior, unimix=0.01, free_nats=1.0)
            return torch.autograd.grad((dyn + 0.1 * rep).sum(), [posterior, prior])

        for what, call in (("sample", sample), ("KL both ways", kl)):
            out[f"{what} and gradient, {name}"] = dispatch.implementations(call, device)
    return out
