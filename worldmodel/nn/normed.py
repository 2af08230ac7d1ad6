"""Layers of the TD-MPC family: Linear -> LayerNorm -> Mish, simplices, and images shifted at random."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.kernels.unimix_categorical.reference import softmax
from worldmodel.nn.blocks import mish
from worldmodel.nn.encoders import Encoder
from worldmodel.specs import ArraySpec


def normal02(weight: Tensor, fan_in: int) -> None:
    """Normal with standard deviation 0.02, whatever the width."""
    nn.init.trunc_normal_(weight, std=0.02)


def orthogonal(weight: Tensor, fan_in: int) -> None:
    """A random rotation, of what it is applied to or of what comes out (Saxe et al. 2014)."""
    nn.init.orthogonal_(weight)


Activation = Literal["mish", "silu", "elu"]
"""Mish is TD-MPC2's; SiLU, which looks alike, takes a CPU a fifth of the time; ELU is TD-MPC's."""

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"mish": mish, "silu": F.silu, "elu": F.elu}

Norm = Literal["layer", "first", "none"]
"""Which hidden layers a LayerNorm is in: all, none, or the first alone, where a tanh replaces the activation."""

Init = Literal["normal", "orthogonal"]
"""How weights begin: normal with standard deviation 0.02 (TD-MPC2), or orthogonal (TD-MPC); biases at 0."""

INITS: dict[Init, Callable[[Tensor, int], None]] = {"normal": normal02, "orthogonal": orthogonal}


class Standardise(nn.Module):
    """(x - shift) / scale by numbers that are measured once; the identity before."""

    shift: Tensor
    scale: Tensor

    floor = 1e-6
    """Standard deviation of an input that never changes, and is left at its scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size)."""
        return (x - self.shift) / self.scale

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Take mean and standard deviation of (N, size), in place."""
        spread = x.std(0, unbiased=False)
        self.shift.copy_(x.mean(0))
        self.scale.copy_(torch.where(spread < self.floor, 1.0, spread))


class NormedLinear(nn.Module):
    """Linear -> LayerNorm -> ``activation``; ``normed`` False: without the norm."""

    def __init__(
        self, inputs: int, outputs: int, activation: Callable[[Tensor], Tensor], *, normed: bool = True,
        init: Init = "normal",
    ) -> None:
        super().__init__()
        self.linear, self.activation = plain_linear(inputs, outputs, init=init), activation
        self.norm = nn.LayerNorm(outputs) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.linear(x)))


class NormedTrunk(nn.Sequential):
    """``layers`` x NormedLinear of ``units``."""

    def __init__(
        self, inputs: int, units: int, layers: int, activation: Activation = "mish", norm: Norm = "layer",
        init: Init = "normal",
    ) -> None:
        act, first = ACTIVATIONS[activation], norm == "first"
        kinds = [(torch.tanh, True) if first and not i else (act, norm == "layer") for i in range(layers)]
        widths = itertools.pairwise([inputs, *[units] * layers])
        super().__init__(*(
            NormedLinear(a, b, function, normed=normed, init=init) for (a, b), (function, normed) in zip(widths, kinds)
        ))
        self.out_dim = units if layers else inputs


class NormedMLP(nn.Sequential):
    """NormedTrunk, then linear; ``out_scale`` 0 makes it begin at 0."""

    def __init__(
        self, inputs: int, units: int, layers: int, outputs: int, *, activation: Activation = "mish",
        norm: Norm = "layer", init: Init = "normal", out_scale: float = 1.0,
    ) -> None:
        super().__init__(
            *NormedTrunk(inputs, units, layers, activation, norm, init),
            plain_linear(units if layers else inputs, outputs, scale=out_scale, init=init),
        )


class SimNorm(nn.Module):
    """Softmax within groups of ``size``: every group is a point of a simplex (Lavoie et al. 2022; TD-MPC2, eq. 5)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(..., D), D a multiple of ``size``; float32."""
        return softmax(x.unflatten(-1, (-1, self.size)).float()).flatten(-2)


def plain_linear(inputs: int, outputs: int, *, scale: float = 1.0, init: Init = "normal") -> nn.Linear:
    """A linear layer that begins as ``init`` says, times ``scale``, with biases of 0."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        INITS[init](layer.weight, inputs)
        layer.weight.mul_(scale)
        layer.bias.zero_()
    return layer


def shifted(images: Tensor, reach: int) -> Tensor:
    """(N, h, w, C), each moved by its own -reach to reach pixels both ways, edges repeated (DrQ-v2)."""
    n, height, width, _ = images.shape
    device = images.device
    by = torch.randint(-reach, reach + 1, (n, 2), device=device)
    rows = (torch.arange(height, device=device) + by[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + by[:, 1:]).clamp(0, width - 1)
    return images[torch.arange(n, device=device)[:, None, None], rows.unsqueeze(2), columns.unsqueeze(1)]


class ConvTrunk(nn.Module):
    """Four convolutions (7 by 2, 5 by 2, 3 by 2, 3 by 1), ReLU between them: (N, h, w, C) -> (N, out_dim).

    Flattened channels first, as TD-MPC2's are, so that a simplex is 8 neighbouring pixels of one channel.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        height, width, depth = shape
        plan = ((7, 2), (5, 2), (3, 2), (3, 1))
        self.convs = nn.ModuleList()
        for kernel, stride in plan:
            self.convs.append(nn.Conv2d(channels if len(self.convs) else depth, channels, kernel, stride))
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        if height < 1 or width < 1:
            raise ValueError(f"four convolutions leave nothing of {shape[0]} x {shape[1]} pixels; 41 x 41 is the least")
        self.out_dim = height * width * channels

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        for i, conv in enumerate(self.convs):
            x = conv(F.relu(x) if i else x)
        return x.flatten(1)


@dataclass(frozen=True, kw_only=True)
class NormedEncoderConfig:
    """Vectors as they are through layers of LayerNorm and Mish, images through convolutions (TD-MPC2)."""

    units: int = 256
    layers: int = 1
    """Hidden layers for vectors; the one that makes the latent comes after them."""
    channels: int = 32
    """Of the convolutions."""
    activation: Activation = "mish"
    norm: Norm = "layer"
    init: Init = "normal"

    def build(self, obs: dict[str, ArraySpec]) -> Encoder:
        return Encoder(
            obs, lambda shape: ConvTrunk(shape, self.channels), self.units, self.layers,
            vector_net=partial(NormedTrunk, activation=self.activation, norm=self.norm, init=self.init), squash=False,
        )
