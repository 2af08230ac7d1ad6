"""Layers of the Dreamer family: Linear -> RMSNorm -> SiLU, block-diagonal linears, truncated-normal initialisation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-4


def init_weight(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Truncated normal on two standard deviations with variance ``1 / fan_in`` after truncation, times ``scale``.

    1.1368 undoes what cutting at two sigma takes from the variance.
    """
    with torch.no_grad():
        if scale == 0.0:
            weight.zero_()
            return
        std = 1.1368 * math.sqrt(1.0 / fan_in)
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std).mul_(scale)


class Linear(nn.Linear):
    """A linear layer with the family's initialisation. ``scale`` multiplies the initial weights (0 for value heads)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, scale: float = 1.0) -> None:
        super().__init__(inputs, outputs, bias=bias)
        init_weight(self.weight, inputs, scale)
        if bias:
            nn.init.zeros_(self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (or ``dim``), computed in float32, epsilon 1e-4, no shift."""

    def __init__(self, size: int, *, dim: int = -1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        full = x.float()
        normed = full * torch.rsqrt(full.square().mean(self.dim, keepdim=True) + NORM_EPS)
        scale = self.scale if self.dim == -1 else self.scale.view(-1, *(1,) * (-self.dim - 1))
        return (normed * scale).to(x.dtype)


class BlockLinear(nn.Module):
    """Block-diagonal linear: the features are cut in ``blocks`` groups, each with its own matrix.

    The initial scale follows the reference: fan-in is the *total* input width, not that of one block.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"BlockLinear widths must be multiples of {blocks} blocks, got {inputs} and {outputs}")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))
        init_weight(self.weight, inputs)

    def forward(self, x: Tensor) -> Tensor:
        # (..., blocks * in) -> (blocks, N, in)
        rows = x.reshape(-1, self.blocks, x.shape[-1] // self.blocks).transpose(0, 1)
        # (blocks, N, in) @ (blocks, in, out) -> (N, blocks * out)
        mixed = torch.bmm(rows, self.weight).transpose(0, 1).reshape(rows.shape[1], -1)
        return (mixed + self.bias).reshape(*x.shape[:-1], -1)


class Dense(nn.Sequential):
    """Linear -> RMSNorm -> SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(Linear(inputs, outputs), RMSNorm(outputs), nn.SiLU())


class MLP(nn.Sequential):
    """``layers`` x Dense; ``out_dim`` is the width of the result."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__(*(Dense(inputs if i == 0 else units, units) for i in range(layers)))
        self.out_dim = units if layers else inputs


class Conv(nn.Module):
    """Conv k x k, stride 1, same size, on (N, C, h, w)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        init_weight(self.weight, kernel * kernel * inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding="same")
