"""Formulas on (B, T): pure functions, keyword arguments, nothing learned.

Alignment: index t of ``reward``, ``continues`` and ``bootstrap`` belongs to *arriving* in state t+1; index t of a
result belongs to state t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels import lambda_return as kernels
from worldmodel.tree import struct


def lambda_return(*, reward: Tensor, continues: Tensor, bootstrap: Tensor, lam: float | Tensor) -> Tensor:
    """Exponentially weighted returns (DreamerV3, eq. 6; Sutton and Barto, eq. 12.20).

        R_t = r_{t+1} + c_{t+1} [(1 - lam_{t+1}) V_{t+1} + lam_{t+1} R_{t+1}],    R_T = V_T

    Args:
        reward: (B, T) r_{t+1}.
        continues: (B, T) c_{t+1}, discount included; 0 where the episode terminated on arrival.
        bootstrap: (B, T) V_{t+1}.
        lam: in [0, 1], or (B, T); 0 where the chain must not run on (a truncation: bootstrap, then stop).
    Returns: (B, T).
    """
    return kernels.lambda_return(reward, continues, bootstrap, lam)


def reach_weight(continues: Tensor) -> Tensor:
    """Probability (times discount) that an imagined state is reached at all: w_t = prod_{i <= t} c_i, (B, T).

    ``continues[:, 0]`` is that of the start state itself, so an imagined step counts as much as the state in which the
    action is taken is alive: the outcome's own continuation is not in it.
    """
    return continues.cumprod(1)


@struct
class Ahead:
    """What lies ahead of the first steps of sequences, (B,) each."""

    reward: Tensor
    """sum_{t < at} discount^t r_{t+1}."""
    discount: Tensor
    """discount^at, of what follows."""
    at: Tensor
    """int64 the step arrived in: fewer than asked for where the episode ended before, 0 where it ended at once."""


def steps_ahead(*, reward: Tensor, is_first: Tensor, discount: float, steps: int) -> Ahead:
    """n-step returns of the first steps, as far as their episodes go; 1 - terminal at ``at`` is for whoever asks.

    Args: reward, is_first (B, T), T > steps.
    """
    # (B, steps) whether step t + 1 is still of the same episode
    inside = (~is_first[:, 1 : steps + 1]).long().cumprod(1)
    at = inside.sum(1)
    power = discount ** torch.arange(steps + 1, device=reward.device, dtype=reward.dtype)
    return Ahead(reward=(reward[:, 1 : steps + 1] * inside * power[:-1]).sum(1), discount=power[at], at=at)
