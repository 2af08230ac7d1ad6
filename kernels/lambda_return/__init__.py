"""Exponentially weighted returns."""

from __future__ import annotations

from torch import Tensor

from worldmodel.kernels import dispatch
from worldmodel.kernels.lambda_return import reference

__all__ = ["lambda_return"]


def lambda_return(reward: Tensor, continues: Tensor, bootstrap: Tensor, lam: float | Tensor) -> Tensor:
    """See :func:`reference.lambda_return`."""
    if dispatch.backend("lambda_return", reward) == "reference":
        return reference.lambda_return(reward, continues, bootstrap, lam)
    from worldmodel.kernels.lambda_return import triton

    weight = lam if isinstance(lam, Tensor) else reward.new_full((), lam)
    return triton.lambda_return(reward, continues, bootstrap, weight.expand(reward.shape))
