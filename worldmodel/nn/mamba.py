"""Blocks of Mamba-1 and Mamba-2: projections, a short convolution and a scan, with episode resets and explicit states.

A mixer keeps nothing. Its two states come in and go out: ``conv`` (B, W-1, C), the inputs that the convolution still
sees, and ``ssm``, the scan's state. Over a sequence both come out at every step, because imagination may begin there.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import MisfitError
from worldmodel.kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from worldmodel.kernels.selective_scan import selective_scan
from worldmodel.kernels.selective_step import selective_step
from worldmodel.kernels.ssd_scan import ssd_scan
from worldmodel.kernels.ssd_step import ssd_step
from worldmodel.nn.blocks import Linear, RMSNorm, log_uniform

EPS = 1e-5
"""Of the norms in and around a block."""


class Mixed(NamedTuple):
    """What a mixer gives."""

    y: Tensor
    """(B, T, D), or (B, D) of one step."""
    conv: Tensor
    """(B, T, W-1, C) or (B, W-1, C), the convolution's inputs, the latest last."""
    ssm: Tensor
    """(B, T, ...) or (B, ...), the scan's state."""


class Mixer(Protocol):
    """Mixes a sequence over time, in parallel or step by step."""

    def initial(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """The states (conv, ssm) before anything was seen: zeros."""
        ...

    def __call__(self, x: Tensor, segments: Tensor, conv: Tensor, ssm: Tensor) -> Mixed:
        """(B, T, D) with segment numbers (B, T) (``kernels.segments``) and the states before the sequence."""
        ...

    def step(self, x: Tensor, reset: Tensor | None, conv: Tensor, ssm: Tensor) -> Mixed:
        """(B, D), forgetting the states where ``reset`` (B,)."""
        ...


class Mamba2(nn.Module):
    """[z, x B C, dt] = in(u);  x, B, C = conv;  y = SSD;  out(RMSNorm(y * silu(z))) (Dao and Gu 2024, section 7)."""

    def __init__(
        self, size: int, *, d_state: int, expand: int, headdim: int, width: int, out_scale: float,
        remember: int | None = None,
    ) -> None:
        """Args: size D; out_scale multiplies the initial weights of the output projection; remember is the longest
        time constant to begin with, in steps, None as published."""
        super().__init__()
        self.inner, self.d_state, self.headdim = expand * size, d_state, headdim
        if self.inner % headdim:
            raise MisfitError(f"expand * d_model must be a multiple of headdim={headdim}, got {self.inner}")
        heads, channels = self.inner // headdim, self.inner + 2 * d_state
        self.in_proj = Linear(size, self.inner + channels + heads, bias=False)
        self.conv_weight, self.conv_bias = _convolution(channels, width)
        if remember is None:
            dt, rate = _step_sizes(heads), torch.empty(heads).uniform_(1, 16)
        else:
            dt, rate = _lasting(torch.Size([heads]), remember)
        self.dt_bias, self.A_log = nn.Parameter(_before_softplus(dt)), nn.Parameter(rate.log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(self.inner, eps=EPS)
        self.out_proj = Linear(self.inner, size, bias=False, scale=out_scale)

    def initial(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Mixer.initial`: conv (B, W-1, I + 2N), ssm (B, H, P, N)."""
        channels, width = self.conv_weight.shape
        heads = self.D.shape[0]
        return (
            self.D.new_zeros(batch_size, width - 1, channels),
            self.D.new_zeros(batch_size, heads, self.headdim, self.d_state),
        )

    def forward(self, x: Tensor, segments: Tensor, conv: Tensor, ssm: Tensor) -> Mixed:
        """See :meth:`Mixer.__call__`."""
        gate, inputs, dt = self._project(x)
        mixed, _ = causal_conv1d(inputs, self.conv_weight, self.conv_bias, segments=segments, state=conv)
        u, B, C = self._split(mixed)
        out = ssd_scan(
            u, dt, self._A, B, C, self.D.float(), segments=segments, state=ssm, return_states=True
        )
        assert out.states is not None
        return Mixed(self._out(out.y, gate), conv_windows(inputs, segments, conv), out.states)

    def step(self, x: Tensor, reset: Tensor | None, conv: Tensor, ssm: Tensor) -> Mixed:
        """See :meth:`Mixer.step`."""
        gate, inputs, dt = self._project(x)
        mixed, conv = causal_conv1d_step(inputs, self.conv_weight, self.conv_bias, conv, reset=reset)
        u, B, C = self._split(mixed)
        y, ssm = ssd_step(u, dt, self._A, B, C, self.D.float(), ssm, reset=reset)
        return Mixed(self._out(y, gate), conv, ssm)

    @property
    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.float())

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) to the gate (..., I), the convolution's inputs (..., I + 2N) and step sizes (..., H)."""
        gate, inputs, dt = self.in_proj(x).split(
            [self.inner, self.inner + 2 * self.d_state, self.D.shape[0]], -1
        )
        return gate, inputs, F.softplus(dt.float() + self.dt_bias)

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, B, C = mixed.split([self.inner, self.d_state, self.d_state], -1)
        # one group of B and C for all heads
        return u.unflatten(-1, (-1, self.headdim)), B.unsqueeze(-2), C.unsqueeze(-2)

    def _out(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(self.norm(y.flatten(-2) * F.silu(gate)))


class Mamba1(nn.Module):
    """[x, z] = in(u);  x = conv;  [dt, B, C] = proj(x);  y = scan;  out(y * silu(z)) (Gu and Dao 2023, section 3.4)."""

    def __init__(
        self, size: int, *, d_state: int, expand: int, width: int, out_scale: float, remember: int | None = None
    ) -> None:
        """See :class:`Mamba2`."""
        super().__init__()
        self.inner, self.d_state, self.rank = expand * size, d_state, math.ceil(size / 16)
        self.in_proj = Linear(size, 2 * self.inner, bias=False)
        self.conv_weight, self.conv_bias = _convolution(self.inner, width)
        self.x_proj = Linear(self.inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Parameter(torch.empty(self.inner, self.rank).uniform_(-1, 1) * self.rank**-0.5)
        if remember is None:
            dt, rate = _step_sizes(self.inner), torch.arange(1, d_state + 1).float().repeat(self.inner, 1)
        else:
            dt, rate = _lasting(torch.Size([self.inner, d_state]), remember)
        self.dt_bias, self.A_log = nn.Parameter(_before_softplus(dt)), nn.Parameter(rate.log())
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = Linear(self.inner, size, bias=False, scale=out_scale)

    def initial(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Mixer.initial`: conv (B, W-1, I), ssm (B, I, N)."""
        channels, width = self.conv_weight.shape
        return self.D.new_zeros(batch_size, width - 1, channels), self.D.new_zeros(batch_size, channels, self.d_state)

    def forward(self, x: Tensor, segments: Tensor, conv: Tensor, ssm: Tensor) -> Mixed:
        """See :meth:`Mixer.__call__`."""
        inputs, gate = self.in_proj(x).chunk(2, -1)
        u, _ = causal_conv1d(inputs, self.conv_weight, self.conv_bias, segments=segments, state=conv)
        dt, B, C = self._select(u)
        out = selective_scan(
            u, dt, self._A, B, C, self.D.float(), segments=segments, state=ssm, return_states=True
        )
        assert out.states is not None
        return Mixed(self.out_proj(out.y * F.silu(gate)), conv_windows(inputs, segments, conv), out.states)

    def step(self, x: Tensor, reset: Tensor | None, conv: Tensor, ssm: Tensor) -> Mixed:
        """See :meth:`Mixer.step`."""
        inputs, gate = self.in_proj(x).chunk(2, -1)
        u, conv = causal_conv1d_step(inputs, self.conv_weight, self.conv_bias, conv, reset=reset)
        dt, B, C = self._select(u)
        y, ssm = selective_step(u, dt, self._A, B, C, self.D.float(), ssm, reset=reset)
        return Mixed(self.out_proj(y * F.silu(gate)), conv, ssm)

    @property
    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.float())

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., I) to step sizes (..., I), B and C (..., N)."""
        dt, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], -1)
        return F.softplus(F.linear(dt, self.dt_proj).float() + self.dt_bias), B, C


def conv_windows(inputs: Tensor, segments: Tensor, state: Tensor) -> Tensor:
    """The state of a convolution after every step: the last W-1 inputs of the step's own segment, others as 0.

    Args: inputs (B, T, C); segments (B, T); state (B, W-1, C), of segment 0.
    Returns: (B, T, W-1, C), the latest last.
    """
    reach = state.shape[1]
    every = torch.cat([state, inputs.to(state.dtype)], 1)
    owner = F.pad(segments, (reach, 0))
    # (B, T, C, W-1) -> (B, T, W-1, C): the windows that end with each step
    windows = every.unfold(1, reach, 1)[:, 1:].transpose(2, 3)
    own = owner.unfold(1, reach, 1)[:, 1:] == segments.unsqueeze(2)
    return windows * own.unsqueeze(3)


def _convolution(channels: int, width: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight (C, W) and bias (C,), uniform within 1/sqrt(W), as ``nn.Conv1d`` begins."""
    bound = width**-0.5
    weight, bias = torch.empty(channels, width), torch.empty(channels)
    return nn.Parameter(weight.uniform_(-bound, bound)), nn.Parameter(bias.uniform_(-bound, bound))


def _step_sizes(size: int) -> Tensor:
    """(size,) log-uniform in [0.001, 0.1], as published."""
    return log_uniform(torch.Size([size]), 1e-3, 0.1)


def _lasting(shape: torch.Size, remember: int) -> tuple[Tensor, Tensor]:
    """Step sizes dt (shape[0],) that let the present in, and rates A of this shape for which time constants 1/(dt A)
    are log-uniform between 1 and ``remember`` steps."""
    dt = log_uniform(shape[:1], 0.1, 1.0)
    steps = dt.view(-1, *[1] * (len(shape) - 1))
    return dt, 1 / (steps * log_uniform(shape, 1.0, remember))


def _before_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
