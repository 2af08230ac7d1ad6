"""Latent features back to observations, and the loss of doing so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.distributions import symlog
from worldmodel.errors import check_range
from worldmodel.nn.blocks import MLP, BatchNorm, BlockLinear, Dense, Linear, RMSNorm, TransposedConv, UpConv
from worldmodel.nn.encoders import ACTIVATIONS, check_kernel, check_size, vector_width
from worldmodel.specs import ArraySpec


class ConvDecoderNet(nn.Module):
    """"Block space" input, then stages of nearest x2 upsample -> conv -> RMSNorm -> SiLU, sigmoid at the end."""

    def __init__(self, shape: tuple[int, int, int], deter: int, stoch: int, config: ConvDecoderConfig) -> None:
        super().__init__()
        height, width, channels = shape
        shrink = 2 ** len(config.mults)
        widths = [config.depth * m for m in config.mults[::-1]]
        self.grid = (height // shrink, width // shrink)
        self.blocks = config.blocks
        self.deter = deter
        space = self.grid[0] * self.grid[1] * widths[0]
        self.from_deter = BlockLinear(deter, space, config.blocks)
        self.from_stoch = nn.Sequential(Dense(stoch, 2 * config.units), Linear(2 * config.units, space))
        self.norm = RMSNorm(widths[0])
        self.convs = nn.ModuleList(UpConv(a, b, config.kernel) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(RMSNorm(b) for b in widths[1:])
        self.out = UpConv(widths[-1], channels, config.kernel)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, h, w, C) in [0, 1]."""
        h, w = self.grid
        # (N, g*(h*w*c)) -> (N, h, w, g*c): each block of the recurrent state owns some channels everywhere
        channels = self.norm.scale.shape[0] // self.blocks
        grid = self.from_deter(features[:, : self.deter]).reshape(-1, self.blocks, h, w, channels)
        x = grid.movedim(1, -2).flatten(-2)
        x = x + self.from_stoch(features[:, self.deter :]).reshape(-1, h, w, x.shape[-1])
        x = F.silu(self.norm(x))
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x)))
        return torch.sigmoid(self.out(x).float())


class StrideDecoderNet(nn.Module):
    """The stochastic latent -> linear -> BatchNorm -> activation, then transposed convs with the same, sigmoid at the
    end."""

    def __init__(self, shape: tuple[int, int, int], deter: int, stoch: int, config: StrideDecoderConfig) -> None:
        super().__init__()
        height, width, channels = shape
        keeps = config.first == "same"
        shrink = 2 ** (len(config.mults) - keeps)
        check_size(height, width, shrink)
        widths = [config.depth * m for m in config.mults[::-1]]
        self.deter, self.grid, self.width = deter, (height // shrink, width // shrink), widths[0]
        self.expand = Linear(stoch, self.grid[0] * self.grid[1] * widths[0], bias=config.bias)
        self.norms = nn.ModuleList(BatchNorm(b) for b in widths)
        self.convs = nn.ModuleList(
            TransposedConv(a, b, config.kernel, stride=2, bias=config.bias) for a, b in itertools.pairwise(widths)
        )
        self.act = ACTIVATIONS[config.activation]
        self.out = TransposedConv(widths[-1], channels, config.kernel, stride=1 if keeps else 2)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, h, w, C) in [0, 1]."""
        x = self.act(self.norms[0](self.expand(features[:, self.deter :]).reshape(-1, *self.grid, self.width)))
        for conv, norm in zip(self.convs, self.norms[1:]):
            x = self.act(norm(conv(x)))
        return torch.sigmoid(self.out(x).float())


class PatchDecoderNet(nn.Module):
    """Features -> dense -> features of each patch -> shared linear -> pixels, sigmoid at the end."""

    def __init__(self, shape: tuple[int, int, int], features: int, config: PatchDecoderConfig) -> None:
        super().__init__()
        height, width, channels = shape
        check_size(height, width, config.patch)
        self.patch = config.patch
        self.grid = (height // config.patch, width // config.patch)
        patches = self.grid[0] * self.grid[1]
        self.expand = nn.Sequential(Dense(features, config.units), Linear(config.units, patches * config.width))
        self.out = nn.Sequential(RMSNorm(config.width), nn.SiLU(), Linear(config.width, config.patch**2 * channels))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, h, w, C) in [0, 1]."""
        h, w = self.grid
        patches = self.out(self.expand(features).reshape(-1, h * w, self.out[0].scale.shape[0]))  # type: ignore[union-attr]
        p = self.patch
        frames = rearrange(patches, "n (h w) (p q c) -> n (h p) (w q) c", h=h, w=w, p=p, q=p)
        return torch.sigmoid(frames.float())


@dataclass(frozen=True, kw_only=True)
class ConvDecoderConfig:
    """Convolutions for images, an MLP for vectors."""

    depth: int = 64
    mults: tuple[int, ...] = (2, 3, 4, 4)
    kernel: int = 5
    units: int = 1024
    layers: int = 3
    """Layers of the vector MLP."""
    blocks: int = 8
    """Groups of the recurrent state that paint separate channels."""

    def __post_init__(self) -> None:
        check_range(self, 1, "depth", "kernel", "units", "blocks")
        check_range(self, 0, "layers")

    def build(self, obs: dict[str, ArraySpec], deter: int, stoch: int) -> Decoder:
        return Decoder(
            obs, lambda shape: ConvDecoderNet(shape, deter, stoch, self), deter + stoch, self.units, self.layers
        )


@dataclass(frozen=True, kw_only=True)
class PatchDecoderConfig:
    """Patches for images, an MLP for vectors: for CPUs."""

    patch: int = 8
    width: int = 64
    units: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        check_range(self, 1, "patch", "width", "units")
        check_range(self, 0, "layers")

    def build(self, obs: dict[str, ArraySpec], deter: int, stoch: int) -> Decoder:
        return Decoder(
            obs, lambda shape: PatchDecoderNet(shape, deter + stoch, self), deter + stoch, self.units, self.layers
        )


@dataclass(frozen=True, kw_only=True)
class StrideDecoderConfig:
    """Transposed convolutions with BatchNorm, from the stochastic latent alone, for images (Drama, table "decoder";
    STORM); an MLP of all features for vectors."""

    depth: int = 16
    mults: tuple[int, ...] = (1, 2, 3, 4, 4)
    """From the picture inwards."""
    first: Literal["same", "half"] = "same"
    """Whether the stage next to the picture keeps the size; every other doubles it."""
    kernel: int = 5
    """Odd where a stage keeps the size."""
    bias: bool = True
    """Of all layers but the last; the norms after them make it idle."""
    activation: Literal["silu", "relu"] = "silu"
    units: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        check_range(self, 1, "depth", "kernel", "units")
        check_range(self, 0, "layers")
        check_kernel(self.kernel, self.first)

    def build(self, obs: dict[str, ArraySpec], deter: int, stoch: int) -> Decoder:
        return Decoder(
            obs, lambda shape: StrideDecoderNet(shape, deter, stoch, self), deter + stoch, self.units, self.layers
        )


class Decoder(nn.Module):
    """Features (deter first, then stoch) to every observation key."""

    def __init__(
        self, obs: dict[str, ArraySpec], image_net: Callable[[tuple[int, int, int]], Any], features: int, units: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.specs = dict(sorted(obs.items()))
        self.image_keys = [k for k, s in self.specs.items() if s.is_image]
        self.vector_keys = [k for k, s in self.specs.items() if not s.is_image]
        if self.vector_keys:
            self.mlp = MLP(features, units, layers)
            self.heads = nn.ModuleList(Linear(self.mlp.out_dim, vector_width(self.specs[k])) for k in self.vector_keys)
        if self.image_keys:
            shapes = [self.specs[k].shape for k in self.image_keys]
            self.image = image_net((shapes[0][0], shapes[0][1], sum(s[2] for s in shapes)))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """(..., F) -> images (..., h, w, C) in [0, 1]; vectors (..., size) in symlog space; classes as logits
        (..., *shape, K)."""
        lead = features.shape[:-1]
        out: dict[str, Tensor] = {}
        if self.vector_keys:
            hidden = self.mlp(features)
            for key, head in zip(self.vector_keys, self.heads):
                spec = self.specs[key]
                shape = (*spec.shape, spec.classes) if spec.classes else (-1,)
                out[key] = head(hidden).float().reshape(*lead, *shape)
        if self.image_keys:
            frames = self.image(features.reshape(-1, features.shape[-1]))
            parts = frames.split([self.specs[k].shape[2] for k in self.image_keys], -1)
            for key, part in zip(self.image_keys, parts):
                out[key] = part.reshape(*lead, *self.specs[key].shape)
        return out

    def loss(self, features: Tensor, obs: dict[str, Tensor]) -> Tensor:
        """(B, T): squared error summed over pixels and vector entries (symlog), cross-entropy for classes; summed over
        keys."""
        total = torch.zeros((), device=features.device)
        for key, predicted in self(features).items():
            spec, target = self.specs[key], obs[key]
            if spec.is_image:
                error = (predicted - target.float() / 255).square().flatten(2).sum(-1)
            elif spec.classes:
                logp = torch.log_softmax(predicted, -1).gather(-1, target.long().clamp(min=0).unsqueeze(-1)).squeeze(-1)
                error = -(logp * (target >= 0)).reshape(*target.shape[:2], -1).sum(-1)
            else:
                flat = target.float().reshape(*target.shape[:2], -1)
                seen = flat != -torch.inf
                error = ((predicted - symlog(torch.where(seen, flat, 0.0))).square() * seen).sum(-1)
            total = total + error
        return total
