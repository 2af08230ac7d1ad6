"""``selective_step``: one step of Mamba-1's mixer for many states at once, as imagination and acting take it."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.dispatch import backend
from worldmodel.kernels.selective_step import reference


def selective_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    *,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h' = exp(dt A) h + dt x B and y = h' C + D x; what ``selective_scan`` does for a sequence of one.

    Out of place and differentiable in every floating-point argument.

    Args:
        x: (B, D).
        dt: (B, D), not negative: after softplus.
        A: (D, N), negative.
        B: (B, N).
        C: (B, N).
        D: (D,), the skip.
        state: (B, D, N).
        reset: (B,) bool, true where the state is forgotten before the step; none means nowhere.

    Returns:
        y (B, D) in the dtype of x, and the next state (B, D, N), float32.
    """
    reset = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device) if reset is None else reset
    if backend("selective_step", x) == "reference":
        return reference.selective_step(x, dt, A, B, C, D, reset, state)
    from worldmodel.kernels.selective_scan.triton import selective_scan_op

    y, final, _ = selective_scan_op(
        x[:, None], dt[:, None], A, B[:, None], C[:, None], D, reset[:, None].int(), state, False
    )
    return y[:, 0], final
