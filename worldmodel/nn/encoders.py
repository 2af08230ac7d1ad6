"""Observations to one token a step. The only place where observations are converted and normalised."""

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
from worldmodel.errors import MisfitError, check_range
from worldmodel.nn.blocks import MLP, BatchNorm, Conv, Dense, DownConv, RMSNorm
from worldmodel.specs import ArraySpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu}


def stack_images(obs: dict[str, Tensor], keys: list[str]) -> Tensor:
    """All image keys as one float (N, h, w, C) in [-0.5, 0.5]; channels are concatenated in key order."""
    for key in keys:
        if obs[key].dtype != torch.uint8:
            raise TypeError(f'obs["{key}"] must be uint8 (..., h, w, C), got {obs[key].dtype}; pass raw frames')
    frames = torch.cat([obs[key] for key in keys], -1) if len(keys) > 1 else obs[keys[0]]
    return frames.flatten(0, -4).float() / 255 - 0.5


class ConvNet(nn.Module):
    """Stages of conv 5x5 -> 2x2 max-pool -> RMSNorm over channels -> SiLU (DreamerV3 2024 and later)."""

    def __init__(self, shape: tuple[int, int, int], depth: int, mults: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        height, width, channels = shape
        shrink = 2 ** len(mults)
        check_size(height, width, shrink)
        widths = [channels, *(depth * m for m in mults)]
        self.convs = nn.ModuleList(Conv(a, b, kernel) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(RMSNorm(b) for b in widths[1:])
        self.out_dim = (height // shrink) * (width // shrink) * widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(F.max_pool2d(conv(x).movedim(-1, 1), 2).movedim(1, -1)))
        # (N, h, w, C) -> (N, h*w*C)
        return x.flatten(1)


class StrideNet(nn.Module):
    """Stages of strided conv -> BatchNorm -> activation (Drama, STORM)."""

    def __init__(self, shape: tuple[int, int, int], config: StrideEncoderConfig) -> None:
        super().__init__()
        height, width, channels = shape
        keeps = config.first == "same"
        shrink = 2 ** (len(config.mults) - keeps)
        check_size(height, width, shrink)
        widths = [channels, *(config.depth * m for m in config.mults)]
        self.convs = nn.ModuleList(
            (Conv if keeps and i == 0 else DownConv)(a, b, config.kernel, bias=config.bias)
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.norms = nn.ModuleList(BatchNorm(b) for b in widths[1:])
        self.act = ACTIVATIONS[config.activation]
        self.out_dim = (height // shrink) * (width // shrink) * widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = self.act(norm(conv(x)))
        # (N, h, w, C) -> (N, h*w*C)
        return x.flatten(1)


class PatchNet(nn.Module):
    """Patches -> shared linear -> RMSNorm -> SiLU -> dense: matrix products only, the cheapest encoder for a CPU."""

    def __init__(self, shape: tuple[int, int, int], patch: int, width: int, units: int) -> None:
        super().__init__()
        height, size, channels = shape
        check_size(height, size, patch)
        self.patch = patch
        self.embed = Dense(patch * patch * channels, width)
        self.mix = Dense((height // patch) * (size // patch) * width, units)
        self.out_dim = units

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch
        patches = rearrange(x, "n (h p) (w q) c -> n (h w) (p q c)", p=p, q=p)
        embedded = self.embed(patches)
        # Most patches show background. Taken off, it no longer drowns the few that show something.
        embedded = embedded - embedded.mean(1, keepdim=True)
        return self.mix(embedded.flatten(1))


@dataclass(frozen=True, kw_only=True)
class ConvEncoderConfig:
    """Convolutions for images, an MLP for vectors (DreamerV3, table "model sizes")."""

    depth: int = 64
    """Channels of stage i are depth x mults[i]."""
    mults: tuple[int, ...] = (2, 3, 4, 4)
    kernel: int = 5
    units: int = 1024
    """Width of the vector MLP."""
    layers: int = 3
    """Layers of the vector MLP."""

    def __post_init__(self) -> None:
        check_range(self, 1, "depth", "kernel", "units")
        check_range(self, 0, "layers")

    def build(self, obs: dict[str, ArraySpec]) -> Encoder:
        return Encoder(obs, lambda shape: ConvNet(shape, self.depth, self.mults, self.kernel), self.units, self.layers)


@dataclass(frozen=True, kw_only=True)
class PatchEncoderConfig:
    """Patch embedding for images, an MLP for vectors: for CPUs."""

    patch: int = 8
    """Side of a square patch, in pixels."""
    width: int = 64
    """Features of one patch."""
    units: int = 256
    """Width of the token and of the vector MLP."""
    layers: int = 2
    """Layers of the vector MLP."""

    def __post_init__(self) -> None:
        check_range(self, 1, "patch", "width", "units")
        check_range(self, 0, "layers")

    def build(self, obs: dict[str, ArraySpec]) -> Encoder:
        return Encoder(obs, lambda shape: PatchNet(shape, self.patch, self.width, self.units), self.units, self.layers)


@dataclass(frozen=True, kw_only=True)
class StrideEncoderConfig:
    """Strided convolutions with BatchNorm for images, an MLP for vectors (Drama, table "encoder"; STORM)."""

    depth: int = 16
    """Channels of stage i are depth x mults[i]."""
    mults: tuple[int, ...] = (1, 2, 3, 4, 4)
    first: Literal["same", "half"] = "same"
    """Whether the first stage keeps the size, or halves it as every other."""
    kernel: int = 5
    """Odd where a stage keeps the size."""
    bias: bool = True
    """Of the convolutions; the norms after them make it idle."""
    activation: Literal["silu", "relu"] = "silu"
    units: int = 256
    """Width of the vector MLP."""
    layers: int = 2
    """Layers of the vector MLP."""

    def __post_init__(self) -> None:
        check_range(self, 1, "depth", "kernel", "units")
        check_range(self, 0, "layers")
        check_kernel(self.kernel, self.first)

    def build(self, obs: dict[str, ArraySpec]) -> Encoder:
        return Encoder(obs, lambda shape: StrideNet(shape, self), self.units, self.layers)


def check_size(height: int, width: int, shrink: int) -> None:
    """Raises MisfitError where a picture does not become whole cells of ``shrink`` pixels."""
    if height % shrink or width % shrink:
        raise MisfitError(
            f"image height and width must be multiples of {shrink}, got {height} x {width}; resize the observation"
        )


def check_kernel(kernel: int, first: Literal["same", "half"]) -> None:
    """Raises MisfitError where a convolution of even width would have to keep the size."""
    if kernel % 2 == 0 and first == "same":
        raise MisfitError(
            f"kernel must be odd where the first stage keeps the size, got {kernel}; or take first='half'"
        )


def vector_width(spec: ArraySpec) -> int:
    """Features that one vector key contributes: its size, times its classes when it is categorical."""
    size = 1
    for n in spec.shape:
        size *= n
    return size * (spec.classes or 1)


class Encoder(nn.Module):
    """All observation keys to one token: vectors (symlog, one-hot) through an MLP, images through ``image_net``."""

    def __init__(
        self, obs: dict[str, ArraySpec], image_net: Callable[[tuple[int, int, int]], Any], units: int, layers: int,
        *, vector_net: Callable[[int, int, int], Any] = MLP, squash: bool = True,
    ) -> None:
        """Args: vector_net: of (inputs, units, layers), with ``out_dim``. squash: vectors enter by their symlog."""
        super().__init__()
        self.squash = squash
        self.specs = dict(sorted(obs.items()))
        self.image_keys = [k for k, s in self.specs.items() if s.is_image]
        self.vector_keys = [k for k, s in self.specs.items() if not s.is_image]
        self.out_dim = 0
        self.mlp: nn.Module | None = None
        self.image: nn.Module | None = None
        if self.vector_keys:
            self.mlp = vector_net(sum(vector_width(self.specs[k]) for k in self.vector_keys), units, layers)
            self.out_dim += self.mlp.out_dim  # type: ignore[operator, union-attr]
        if self.image_keys:
            shapes = [self.specs[k].shape for k in self.image_keys]
            if len({s[:2] for s in shapes}) > 1:
                sizes = ", ".join(f"{k} {s[0]}x{s[1]}" for k, s in zip(self.image_keys, shapes))
                raise MisfitError(f"all image keys must have one height and width, got {sizes}; resize them")
            self.image = image_net((shapes[0][0], shapes[0][1], sum(s[2] for s in shapes)))
            self.out_dim += self.image.out_dim  # type: ignore[operator]

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """obs[key] (..., *shape) -> token (..., E), over any leading axes."""
        key = next(iter(self.specs))
        lead = obs[key].shape[: obs[key].ndim - len(self.specs[key].shape)]
        parts = []
        if self.mlp is not None:
            parts.append(self.mlp(torch.cat([self._vector(k, obs[k], len(lead)) for k in self.vector_keys], -1)))
        if self.image is not None:
            frames = {k: obs[k].reshape(-1, *self.specs[k].shape) for k in self.image_keys}
            parts.append(self.image(stack_images(frames, self.image_keys)).reshape(*lead, -1))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def _vector(self, key: str, x: Tensor, lead: int) -> Tensor:
        classes = self.specs[key].classes
        if classes:
            # a missing class is -1: all zeros
            hot = F.one_hot(x.long().clamp(min=0), classes).float() * (x >= 0).unsqueeze(-1)
            return hot.reshape(*x.shape[:lead], -1)
        x = x.float().reshape(*x.shape[:lead], -1)
        # a missing value is -inf: zero
        x = torch.where(x == -torch.inf, 0.0, x)
        return symlog(x) if self.squash else x
