"""LaProp with adaptive gradient clipping, tensor after tensor (Ziyin et al. 2020; Brock et al. 2021; DreamerV3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 4096
"""Numbers of a chunk; a chunk never holds two tensors."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The numbers of the update."""

    lr: float
    beta1: float = 0.9
    """Momentum."""
    beta2: float = 0.999
    """Average of squares."""
    eps: float = 1e-20
    clip: float = 0.3
    """Largest gradient norm as a share of the parameter norm; 0 for no clipping."""
    warmup: int = 1000
    """Steps of linear warm-up; 0 in the first step."""
    slow_start: int = 0
    """Where in the flat buffer the parameters begin that the slow copy follows."""
    slow_rate: float = 0.0
    """Share of the new parameters that the slow copy takes over."""


class Layout(NamedTuple):
    """Tensors in a flat buffer, and chunks of them on the device."""

    sizes: tuple[int, ...]
    """Numbers of each tensor, in order."""
    start: Tensor
    """(chunks,) int64, with ``stop`` (exclusive): the numbers of a chunk."""
    stop: Tensor
    first: Tensor
    """(chunks,) int32, with ``last`` (inclusive): the chunks of the tensor that a chunk belongs to."""
    last: Tensor


def make_layout(sizes: Sequence[int], device: torch.device) -> Layout:
    """Once for an optimiser: it copies from the host."""
    start, stop, first, last = [], [], [], []
    at = 0
    for size in sizes:
        begins = list(range(at, at + size, CHUNK))
        first += [len(start)] * len(begins)
        last += [len(start) + len(begins) - 1] * len(begins)
        start += begins
        stop += [min(begin + CHUNK, at + size) for begin in begins]
        at += size
    edges = [torch.tensor(x, dtype=torch.int64, device=device) for x in (start, stop)]
    return Layout(tuple(sizes), *edges, *(torch.tensor(x, dtype=torch.int32, device=device) for x in (first, last)))


def step(
    flat: Tensor, grad: Tensor, nu: Tensor, mu: Tensor, count: Tensor, slow: Tensor, healthy: Tensor, layout: Layout,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """Update in place; where the gradient is not finite, or ``healthy`` is False, nothing changes.

    Args:
        flat, grad, nu, mu: (P,) float32: parameters, gradient, average of squares, momentum.
        count: () float32, updates so far. slow: (S,) float32, a slow copy of a range of the parameters; may be empty.
        healthy: () bool.
    Returns: the norm of the whole gradient before clipping, (); and whether the update was made, () bool.
    """
    norms = torch.stack([g.norm() for g in grad.split(layout.sizes)])
    total = norms.square().sum().sqrt()
    healthy = torch.isfinite(total) & healthy
    ok = healthy.float()
    count += ok
    steps = count.clamp(min=1.0)
    warm = ((steps - 1) / rule.warmup).clamp(max=1.0) if rule.warmup else 1.0
    for i, (p, g, n, m) in enumerate(zip(*(x.split(layout.sizes) for x in (flat, grad, nu, mu)))):
        if rule.clip:
            bound = rule.clip * p.norm().clamp(min=1e-3)
            g = g / (norms[i] / bound).clamp(min=1.0)
        g = torch.where(healthy, g, 0.0)
        n.lerp_(g.square(), (1 - rule.beta2) * ok)
        m.lerp_(g / ((n / (1 - rule.beta2**steps)).sqrt() + rule.eps), (1 - rule.beta1) * ok)
        p.sub_(rule.lr * warm * ok * m / (1 - rule.beta1**steps))
    slow.lerp_(flat[rule.slow_start : rule.slow_start + slow.numel()], rule.slow_rate * ok)
    return total, healthy
