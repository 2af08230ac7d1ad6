"""Imagined returns, without gradient (REINFORCE) and with it (through the dynamics)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from worldmodel.kernels import dispatch
from worldmodel.kernels.lambda_return import lambda_return


def cases(device: torch.device) -> dict[str, dict[str, Callable[[], object]]]:
    """The reference; on a GPU it compiled, and Triton."""
    out: dict[str, dict[str, Callable[[], object]]] = {}
    for rows, time in ((256, 15), (1024, 15), (16, 63)):
        inputs = [torch.rand(rows, time, device=device, requires_grad=True) for _ in range(3)]

        def forward(inputs: list[torch.Tensor] = inputs) -> object:
            with torch.no_grad():
                reward, continues, bootstrap = inputs
                return lambda_return(reward, continues, bootstrap, 0.95)

        def both(inputs: list[torch.Tensor] = inputs) -> object:
            reward, continues, bootstrap = inputs
            return torch.autograd.grad(lambda_return(reward, continues, bootstrap, 0.95).sum(), inputs)

        for what, call in (("forward", forward), ("forward and backward", both)):
            out[f"{rows} x {time}, {what}"] = dispatch.implementations(call, device)
    return out
