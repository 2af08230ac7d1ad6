"""The selective scan of Mamba-1, step by step: the specification of ``selective_scan``."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.segments import goes_on
from worldmodel.kernels.selective_step.reference import selective_step


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, D) in the dtype of x, and the state after every step, (B, L, D, N), at least float32."""
    reset = ~goes_on(segments)
    ys, states = [], []
    for t in range(x.shape[1]):
        y, state = selective_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, reset[:, t], state)
        ys.append(y)
        states.append(state)
    return torch.stack(ys, 1), torch.stack(states, 1)
