"""``ssd_step``: one step of Mamba-2's mixer for many states at once, as imagination and acting take it."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.dispatch import backend
from worldmodel.kernels.ssd_step import reference


def ssd_step(
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
    """h' = exp(dt A) h + dt x B^T and y = h' C + D x; what ``ssd_scan`` does for a sequence of one.

    Out of place and differentiable in every floating-point argument.

    Args:
        x: (B, H, P).
        dt: (B, H), not negative: after softplus.
        A: (H,), negative.
        B: (B, G, N); H/G heads share a group.
        C: (B, G, N).
        D: (H,), the skip.
        state: (B, H, P, N).
        reset: (B,) bool, true where the state is forgotten before the step; none means nowhere.

    Returns:
        y (B, H, P) in the dtype of x, and the next state (B, H, P, N), float32.
    """
    chosen = backend("ssd_step", x)
    if chosen == "mamba_ssm":
        from worldmodel.kernels import mamba_ssm

        return mamba_ssm.ssd_step(x, dt, A, B, C, D, reset, state)
    if chosen == "reference":
        return reference.ssd_step(x, dt, A, B, C, D, reset, state)
    reset = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device) if reset is None else reset
    from worldmodel.kernels.ssd_scan.triton import ssd_scan_op

    y, final, _ = ssd_scan_op(x[:, None], dt[:, None], A, B[:, None], C[:, None], D, reset[:, None].int(), state, False)
    return y[:, 0], final
