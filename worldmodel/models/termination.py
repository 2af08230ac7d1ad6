"""When an episode ends, as a function of the state arrived in: what rollouts of learned dynamics stop at. Chosen by
name and never guessed: dreams that go on behind a fall are a known way to learn nothing (MOPO's hopper at 7 of 100)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Termination = Callable[[Tensor], Tensor]
"""(..., n) -> (...) bool."""


def never(x: Tensor) -> Tensor:
    """HalfCheetah, Pendulum, Reacher: truncation alone ends an episode."""
    return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)


def hopper(x: Tensor) -> Tensor:
    """Hopper-v4, -v5: height over 0.7, angle within 0.2, everything else within 100."""
    healthy = x.isfinite().all(-1) & (x[..., 1:].abs() < 100).all(-1) & (x[..., 0] > 0.7) & (x[..., 1].abs() < 0.2)
    return ~healthy


def walker2d(x: Tensor) -> Tensor:
    """Walker2d-v4, -v5: height in (0.8, 2), angle within 1."""
    return ~((x[..., 0] > 0.8) & (x[..., 0] < 2.0) & (x[..., 1].abs() < 1.0))


def ant(x: Tensor) -> Tensor:
    """Ant-v4, -v5: height in [0.2, 1], everything finite."""
    return ~(x.isfinite().all(-1) & (x[..., 0] >= 0.2) & (x[..., 0] <= 1.0))


def humanoid(x: Tensor) -> Tensor:
    """Humanoid-v4, -v5: height in (1, 2)."""
    return ~((x[..., 0] > 1.0) & (x[..., 0] < 2.0))


def inverted_pendulum(x: Tensor) -> Tensor:
    """InvertedPendulum-v4, -v5: angle within 0.2, everything finite."""
    return ~(x.isfinite().all(-1) & (x[..., 1].abs() <= 0.2))


def inverted_double_pendulum(x: Tensor) -> Tensor:
    """InvertedDoublePendulum-v4, -v5: the tip of two poles of 0.6 above 1; of their angles sines and cosines are seen,
    the second one's against the first."""
    sin, cos = x[..., 1:3], x[..., 3:5]
    return 0.6 * (cos[..., 0] + cos[..., 0] * cos[..., 1] - sin[..., 0] * sin[..., 1]) <= 1.0


TERMINATIONS: dict[str, Termination] = {
    "never": never, "hopper": hopper, "walker2d": walker2d, "ant": ant, "humanoid": humanoid,
    "inverted_pendulum": inverted_pendulum, "inverted_double_pendulum": inverted_double_pendulum,
}
