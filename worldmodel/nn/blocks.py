"""Layers of the Dreamer family: Linear -> RMSNorm -> SiLU, block-diagonal linears, truncated-normal initialisation."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import MisfitError

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


def log_uniform(shape: torch.Size, low: float, high: float) -> Tensor:
    """Random numbers of this shape in [low, high] whose logarithms are uniform."""
    return torch.exp(torch.rand(shape) * (math.log(high) - math.log(low)) + math.log(low))


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (Misra 2020).

    On a CPU, torch's is scalar code. With n = e^x (e^x / 2 + 1) it is x n / (n + 1), one exponential and products: it
    takes a quarter to a half of the time. bfloat16 is computed in float32, where no gradient is wanted.
    """
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if not known or torch.compiler.is_compiling():
        return F.mish(x)
    if torch.is_grad_enabled():
        return cast(Tensor, Mish.apply(x)[0]) if x.dtype == torch.float32 else F.mish(x)
    power = x.float().clamp(max=20.0).exp_()
    n = torch.addcmul(power, power, power, value=0.5)
    return n.div_(torch.add(n, 1, out=power)).mul_(x).to(x.dtype)


class Mish(torch.autograd.Function):
    """The same, whose derivative is there when the value is: with s = 1 / (1 + e^-x), c = 1 - s and i = 1 / (1 + c^2),
    tanh(softplus(x)) is t = s i (1 + c), and the derivative t + 4 x s (c i)^2."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        """(...) to the value and its derivative, in as few passes as there may be."""
        s = x.sigmoid()
        c = 1 - s
        i = (c * c).add_(1).reciprocal_()
        c.mul_(i)
        t = i.add_(c).mul_(s)
        return x * t, c.mul_(c).mul_(s).mul_(x).mul_(4).add_(t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants the gradient of this gradient
            s = x.sigmoid()
            c = 1 - s
            i = 1 / (1 + c.square())
            slope = s * i * (1 + c) + 4 * x * s * (c * i).square()
        return grad * slope


class Linear(nn.Linear):
    """A linear layer with the family's initialisation. ``scale`` multiplies the initial weights (0 for value heads)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, scale: float = 1.0) -> None:
        super().__init__(inputs, outputs, bias=bias)
        init_weight(self.weight, inputs, scale)
        if bias:
            nn.init.zeros_(self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32, no shift."""

    def __init__(self, size: int, *, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        full = x.float()
        normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.scale).to(x.dtype)


class BatchNorm(nn.Module):
    """Over all axes but the last, which is the channel: statistics of the batch and their running average while it
    trains, the average alone otherwise."""

    mean: Tensor
    var: Tensor

    def __init__(self, size: int, *, rate: float = 0.1, eps: float = 1e-5) -> None:
        """Args: rate at which the averages follow."""
        super().__init__()
        self.rate, self.eps = rate, eps
        self.scale = nn.Parameter(torch.ones(size))
        self.shift = nn.Parameter(torch.zeros(size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.batch_norm(
            x.flatten(0, -2), self.mean, self.var, self.scale, self.shift, self.training, self.rate, self.eps
        )
        return normed.view(x.shape)


class BlockLinear(nn.Module):
    """Block-diagonal linear: the features are cut in ``blocks`` groups, each with its own matrix.

    The initial scale follows the reference: fan-in is the *total* input width, not that of one block.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise MisfitError(f"BlockLinear widths must be multiples of {blocks} blocks, got {inputs} and {outputs}")
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
    """Conv k x k, stride 1, same size, on (N, h, w, C): channels last is the layout that CPUs and GPUs are fast in."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        init_weight(self.weight, kernel * kernel * inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.movedim(-1, 1), self.weight, self.bias, padding="same").movedim(1, -1)


class DownConv(Conv):
    """Conv k x k with stride 2: (N, h, w, C) -> (N, h/2, w/2, C'), h and w even."""

    def forward(self, x: Tensor) -> Tensor:
        pad = (self.weight.shape[-1] - 1) // 2
        return F.conv2d(x.movedim(-1, 1), self.weight, self.bias, stride=2, padding=pad).movedim(1, -1)


class TransposedConv(nn.Module):
    """The transposed convolution: (N, h, w, C) -> (N, s h, s w, C') with stride s of 1 or 2, k odd where s is 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(inputs, outputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        # an output pixel sees one input in stride^2
        init_weight(self.weight, kernel * kernel * inputs // stride**2)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        pad = (kernel - 1) // 2
        more = self.stride + 2 * pad - kernel
        y = F.conv_transpose2d(
            x.movedim(-1, 1), self.weight, self.bias, stride=self.stride, padding=pad, output_padding=more
        )
        return y.movedim(1, -1)


class UpConv(Conv):
    """Nearest-neighbour upsampling by 2, then Conv k x k: (N, h, w, C) -> (N, 2h, 2w, C'), computed at (h, w).

    The taps of an output pixel fall on few input pixels, several on the same one. Adding up the weights of those gives
    a small kernel for each of the four phases (even and odd rows and columns): for k = 5, 3 x 3 instead of 5 x 5, so
    9/25 of the products and nothing upsampled in memory. The result is the same up to rounding.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)
        if kernel % 2 == 0:
            raise MisfitError(f"an upsampling convolution needs an odd kernel, got {kernel}")

    def phases(self) -> Tensor:
        """(4 C', C, m, m): kernels over the input for output rows 0, 1 x columns 0, 1."""
        kernel = self.weight.shape[-1]
        reach = (kernel // 2 + 1) // 2
        taps = 2 * reach + 1
        out = []
        for row in (0, 1):
            for column in (0, 1):
                # tap j of phase p lies on input pixel (j + lead + p) // 2 of the small window
                lead = 2 * reach - kernel // 2
                left, top = lead + column, lead + row
                pad = (left, 2 * taps - kernel - left, top, 2 * taps - kernel - top)
                wide = F.pad(self.weight, pad)
                out.append(wide.unflatten(-1, (taps, 2)).unflatten(-3, (taps, 2)).sum((-3, -1)))
        return torch.cat(out)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        weight = self.phases()
        x = F.conv2d(x.movedim(-1, 1), weight, self.bias.repeat(4), padding=weight.shape[-1] // 2).movedim(1, -1)
        # (N, h, w, 2*2*C') -> (N, h, 2, w, 2, C') -> (N, 2h, 2w, C')
        return x.unflatten(-1, (2, 2, -1)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
