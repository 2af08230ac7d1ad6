"""Imagined returns, without gradient (REINFORCE) and with it (through the dynamics)."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.lambda_return import lambda_return
from worldmodel.kernels.passes import Cases, passes

TESTS = ("test_lambda_return.py",)


def cases(device: torch.device) -> Cases:
    """By rows x time; 6 operations a step."""

    def returns(reward: Tensor, continues: Tensor, bootstrap: Tensor) -> tuple[Tensor]:
        return (lambda_return(reward, continues, bootstrap, 0.95),)

    out: Cases = {}
    for rows, time in ((256, 15), (1024, 15), (16, 63)):
        inputs = [torch.rand(rows, time, device=device) for _ in range(3)]
        out |= passes(f"{rows} x {time}", returns, inputs, device, operations=6 * rows * time)
    return out
