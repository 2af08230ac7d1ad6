"""Two-hot cross-entropy (DreamerV3, eq. 9 and 10)."""

from __future__ import annotations

import torch
from torch import Tensor


def twohot_loss(logits: Tensor, bins: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy (...) of softmax(logits) to the two-hot code of a number.

    Args:
        logits: (..., K). bins: (K,) ascending. target: (...), clamped to the bins; it gets no gradient.
        mask: (...) bool; where False, loss and gradient are 0 whatever the logits and the target are.
    """
    loss = cross_entropy(torch.log_softmax(logits.float(), -1), bins, target)
    return loss if mask is None else torch.where(mask, loss, 0.0)


def cross_entropy(log_probs: Tensor, bins: Tensor, target: Tensor) -> Tensor:
    """(..., K), (K,), (...) -> (...)."""
    below, weight = code(bins, target)
    pair = log_probs.gather(-1, torch.stack([below, below + 1], -1))
    return -((1 - weight) * pair[..., 0] + weight * pair[..., 1])


def code(bins: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the bin below (...), and the weight of the bin above it (...)."""
    target = target.detach().float().clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, target.contiguous()).clamp(1, bins.shape[0] - 1)
    lower, upper = bins[above - 1], bins[above]
    return above - 1, (target - lower) / (upper - lower)
