"""Exponentially weighted returns, as a loop."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(reward: Tensor, continues: Tensor, bootstrap: Tensor, lam: float | Tensor) -> Tensor:
    """R_t = r_{t+1} + c_{t+1} [(1 - lam_{t+1}) V_{t+1} + lam_{t+1} R_{t+1}], R_T = V_T.

    All (B, T), at least one step; ``lam`` a number or (B, T).
    """
    # columns by unbind: the gradient of T single indices would be T matrices of zeros
    direct = (reward + continues * (1 - lam) * bootstrap).unbind(1)
    carried = (continues * lam).unbind(1)
    out = [bootstrap[:, -1]]
    for now, later in zip(reversed(direct), reversed(carried)):
        out.append(torch.addcmul(now, later, out[-1]))
    return torch.stack(out[:0:-1], 1)
