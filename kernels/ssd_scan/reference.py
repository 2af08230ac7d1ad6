"""The state-space dual recurrence of Mamba-2, step by step: the specification of ``ssd_scan``."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.segments import goes_on
from worldmodel.kernels.ssd_step.reference import ssd_step


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, H, P) in the dtype of x, and the state after every step, (B, L, H, P, N), at least float32."""
    keep = goes_on(segments)
    ys, states = [], []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, ~keep[:, t], state)
        ys.append(y)
        states.append(state)
    return torch.stack(ys, 1), torch.stack(states, 1)
