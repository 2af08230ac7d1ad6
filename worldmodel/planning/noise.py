"""Noise of planners: drawn before the search begins, rows first, from torch's default generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal(*shape: int, like: Tensor) -> Tensor:
    """Standard normal float32 on the device of ``like``."""
    return torch.randn(shape, device=like.device)


def uniform(*shape: int, like: Tensor) -> Tensor:
    """Uniform float32 in [0, 1) on the device of ``like``."""
    return torch.rand(shape, device=like.device)


def gumbel(*shape: int, like: Tensor) -> Tensor:
    """Standard Gumbel: ``(logits + gumbel).argmax()`` is a sample of softmax(logits)."""
    tiny = torch.finfo(torch.float32).tiny
    return -torch.log(-torch.log(uniform(*shape, like=like).clamp(tiny, 1 - 2**-24)))


def coloured(white: Tensor, exponent: float) -> Tensor:
    """Make white noise (..., H, A) correlated along H: unit variance, power at frequency f falls as f^-exponent.

    The spectrum is that of Timmer and Koenig (1995), its lowest frequency flattened at 1 / H as iCEM does. Filtering is
    one product with an (H, H) circulant matrix, so nothing is complex and the shape is fixed.
    """
    steps = white.shape[-2]
    if exponent == 0 or steps == 1:
        return white
    # (F,) amplitudes at 0, 1/H, 2/H, ... and how often each occurs in the full spectrum
    frequency = torch.arange(steps // 2 + 1, dtype=torch.float64, device=white.device).clamp(min=1) / steps
    amplitude = frequency ** (-exponent / 2)
    times = torch.full_like(amplitude, 2.0)
    times[0] = 1.0
    if steps % 2 == 0:
        times[-1] = 1.0
    offset = torch.arange(steps, dtype=torch.float64, device=white.device)
    index = torch.arange(steps // 2 + 1, dtype=torch.float64, device=white.device)
    # (H,) the filter's impulse response
    response = (torch.cos(2 * math.pi * offset.unsqueeze(1) * index / steps) * (times * amplitude)).sum(1)
    response = response / response.square().sum().sqrt()
    lag = torch.arange(steps, device=white.device)
    circulant = response[(lag.unsqueeze(1) - lag) % steps].float()
    return circulant @ white
