"""A stack of Mamba blocks with categorical latents: a sequence is filtered in parallel (Drama, Wang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.distributions import Categorical
from worldmodel.errors import check_range
from worldmodel.kernels.segments import segment_ids
from worldmodel.models.cores.base import CoreOutput
from worldmodel.nn.blocks import MLP, Dense, Linear, RMSNorm
from worldmodel.nn.mamba import EPS, Mamba1, Mamba2
from worldmodel.tree import struct
from worldmodel.types import ArraySpec


@struct
class MambaState:
    """What the blocks made of the past, a categorical sample, and the states of the blocks."""

    deter: Tensor
    """(..., D)"""
    stoch: Tensor
    """(..., Z, K) one-hot."""
    conv: tuple[Tensor, ...]
    """For each layer (..., W-1, C), inputs of its convolution; empty after :meth:`Mamba.trim`."""
    ssm: tuple[Tensor, ...]
    """For each layer (..., H, P, N), or (..., I, N) of Mamba-1: its scan; empty after :meth:`Mamba.trim`."""


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Sizes of Drama's world model by default (arXiv 2410.08893, table "hyperparameters")."""

    d_model: int = 512
    """D, width of the deterministic state and between blocks."""
    layers: int = 2
    mixer: Literal["mamba2", "mamba1"] = "mamba2"
    d_state: int = 16
    """N: numbers that a scan keeps for each channel."""
    expand: int = 2
    """I = expand x d_model channels inside a block."""
    headdim: int = 64
    """P: channels of a Mamba-2 head, which share a decay."""
    conv: int = 4
    """W, inputs that the convolution before a scan sees."""
    remember: int | None = None
    """Steps that the slowest head remembers when learning begins. Published: None, and what is kept for long is taken
    in by steps of 0.001, a whisper beside what just came. Else heads (of Mamba-1 the states of a channel) begin with
    time constants log-uniform between 1 and this many steps, and steps log-uniform in [0.1, 1]."""
    stoch: int = 32
    """Z, categorical groups."""
    classes: int = 32
    """K, classes of a group."""
    hidden: int = 512
    """Width of hidden layers of prior and posterior, where there are any."""
    img_layers: int = 0
    """Hidden layers of the prior."""
    obs_layers: int = 0
    """Hidden layers of the posterior."""
    unimix: float = 0.01
    """Share of the uniform distribution in latents."""
    logit_scale: float = 1.0
    """Multiplies the initial weights of the latents' logits."""
    posterior: Literal["frame", "recurrent"] = "frame"
    """What the posterior sees: the token alone, so that a sequence needs no loop over time, or the deterministic state
    as well, which costs that loop."""
    dropout: float = 0.0
    """Share of the last block's output that is dropped while the model learns from sequences."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"a Mamba core needs at least 1 layer, got {self.layers}")
        check_range(self, 1, "d_model", "d_state", "expand", "headdim", "stoch", "hidden")
        check_range(self, 2, "classes")
        if self.remember is not None:
            check_range(self, 2, "remember")
        if not 2 <= self.conv <= 4:
            raise ValueError(f"conv must be 2 to 4 inputs wide, got {self.conv}")
        if self.mixer == "mamba2" and self.expand * self.d_model % self.headdim:
            raise ValueError(
                f"expand * d_model must be a multiple of headdim={self.headdim}, got {self.expand * self.d_model}"
            )
        for name in ("unimix", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def build(self, action_size: int, token_size: int) -> Mamba:
        return Mamba(self, action_size, token_size)


class Block(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, c: MambaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(c.d_model, eps=EPS)
        shape: dict[str, Any] = {
            "d_state": c.d_state, "expand": c.expand, "width": c.conv, "out_scale": c.layers**-0.5,
            "remember": c.remember,
        }
        if c.mixer == "mamba2":
            self.mixer: Mamba2 | Mamba1 = Mamba2(c.d_model, headdim=c.headdim, **shape)
        else:
            self.mixer = Mamba1(c.d_model, **shape)


class Mamba(nn.Module):
    """deter_t = blocks(stoch_{<t}, action_{<t}); posterior from token_t; prior from deter_t.

    The input of step t is what was seen and done before it, so ``deter`` is ready before the observation is: Drama's
    hidden state of step t-1, from which it predicts frame, reward and end of step t. Where ``is_first``, that input is
    zero and the states of convolutions and scans are forgotten.
    """

    def __init__(self, config: MambaConfig, action_size: int, token_size: int) -> None:
        super().__init__()
        c = self.config = config
        flat = c.stoch * c.classes
        self.deter_size, self.stoch_size = c.d_model, flat
        self.feature_dim = c.d_model + flat
        self.embed = Dense(flat + action_size, c.d_model)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.dropout = nn.Dropout(c.dropout)
        self.norm = RMSNorm(c.d_model, eps=EPS)
        self.prior_head = nn.Sequential(
            MLP(c.d_model, c.hidden, c.img_layers),
            Linear(c.hidden if c.img_layers else c.d_model, flat, scale=c.logit_scale),
        )
        seen = token_size + (c.d_model if c.posterior == "recurrent" else 0)
        self.posterior_head = nn.Sequential(
            MLP(seen, c.hidden, c.obs_layers), Linear(c.hidden if c.obs_layers else seen, flat, scale=c.logit_scale)
        )

    def initial(self, batch_size: int) -> MambaState:
        """Zeros; nothing is learned here."""
        c, like = self.config, self.norm.scale
        conv, ssm = zip(*(block.mixer.initial(batch_size) for block in self._blocks))
        return MambaState(
            deter=like.new_zeros(batch_size, c.d_model), stoch=like.new_zeros(batch_size, c.stoch, c.classes),
            conv=tuple(conv), ssm=tuple(ssm),
        )

    def observe(
        self, state: MambaState, tokens: Tensor, prev_action: Tensor, is_first: Tensor
    ) -> CoreOutput[MambaState]:
        """Filter (B, T): in parallel over T where the posterior sees the token alone, else step by step."""
        batch, time = is_first.shape
        # (B, T, Z): one uniform number a group
        noise = torch.rand(batch, time, self.config.stoch, device=tokens.device)
        if self.config.posterior == "recurrent":
            return self._observe_by_steps(state, tokens, prev_action, is_first, noise)
        posterior = self._posterior_logits(tokens)
        stoch = Categorical(posterior, self.config.unimix).sample(noise)
        before = torch.cat([state.stoch.unsqueeze(1), stoch[:, :-1]], 1)
        x = self._embed(before, prev_action, is_first)
        # one step, which is acting, needs no preparations for a scan
        after = self._advance(state, x[:, 0], is_first[:, 0]) if time == 1 else self._scan(state, x, is_first)
        deter, conv, ssm = after if time > 1 else _with_time(after)
        states = MambaState(deter=deter, stoch=stoch, conv=conv, ssm=ssm)
        return CoreOutput(states=states, posterior=posterior, prior=self.prior(deter))

    def step(self, state: MambaState, action: Tensor) -> MambaState:
        """One step of imagination: the blocks, then a sample of the prior."""
        deter, conv, ssm = self._advance(state, self._embed(state.stoch, action, None), None)
        stoch = Categorical(self.prior(deter), self.config.unimix).sample()
        return MambaState(deter=deter, stoch=stoch, conv=conv, ssm=ssm)

    def prior(self, deter: Tensor) -> Tensor:
        """(..., D) -> logits (..., Z, K)."""
        return self._groups(self.prior_head(deter))

    def features(self, state: MambaState) -> Tensor:
        """(..., D + Z*K): deter first."""
        return torch.cat([state.deter, state.stoch.flatten(-2)], -1)

    def trim(self, state: MambaState) -> MambaState:
        """Without the blocks' states, which only ``observe`` and ``step`` read: a dream need not keep them."""
        return replace(state, conv=(), ssm=())

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """Nothing: the blocks' states of a step are many times its observation. Sequences begin from ``initial``."""
        return {}

    def pack(self, state: MambaState) -> dict[str, Tensor]:
        return {}

    def unpack(self, memory: dict[str, Tensor]) -> MambaState:
        raise ValueError("a Mamba core keeps nothing in replay; begin from initial")

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _embed(self, stoch: Tensor, action: Tensor, is_first: Tensor | None) -> Tensor:
        """(..., Z, K), (..., A) and (...) to inputs of the blocks (..., D)."""
        # actions of unbounded spaces are scaled back into [-1, 1]
        action = action / action.abs().clamp(min=1.0).detach()
        x = torch.cat([stoch.flatten(-2), action], -1)
        return self.embed(x if is_first is None else x * (~is_first).float().unsqueeze(-1))

    def _scan(self, state: MambaState, x: Tensor, is_first: Tensor) -> _Advanced:
        """Inputs (B, T, D) to deter (B, T, D), and the states after every step."""
        segments = segment_ids(is_first)
        convs, ssms = [], []
        residual, y = x.float(), None
        for block, conv, ssm in zip(self._blocks, state.conv, state.ssm):
            residual = residual if y is None else residual + y
            y, conv, ssm = block.mixer(block.norm(residual).to(x.dtype), segments, conv, ssm)
            convs.append(conv)
            ssms.append(ssm)
        return self._close(residual, y), tuple(convs), tuple(ssms)

    def _advance(self, state: MambaState, x: Tensor, reset: Tensor | None) -> _Advanced:
        """Inputs (B, D) to deter (B, D), and the next states."""
        convs, ssms = [], []
        residual, y = x.float(), None
        for block, conv, ssm in zip(self._blocks, state.conv, state.ssm):
            residual = residual if y is None else residual + y
            y, conv, ssm = block.mixer.step(block.norm(residual).to(x.dtype), reset, conv, ssm)
            convs.append(conv)
            ssms.append(ssm)
        return self._close(residual, y), tuple(convs), tuple(ssms)

    def _close(self, residual: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        return self.norm(residual + self.dropout(y)).float()

    def _observe_by_steps(
        self, state: MambaState, tokens: Tensor, prev_action: Tensor, is_first: Tensor, noise: Tensor
    ) -> CoreOutput[MambaState]:
        states, posteriors = [], []
        for t in range(is_first.shape[1]):
            first = is_first[:, t]
            x = self._embed(state.stoch, prev_action[:, t], first)
            deter, conv, ssm = self._advance(state, x, first)
            logits = self._posterior_logits(torch.cat([deter, tokens[:, t]], -1))
            stoch = Categorical(logits, self.config.unimix).sample(noise[:, t])
            state = MambaState(deter=deter, stoch=stoch, conv=conv, ssm=ssm)
            states.append(state)
            posteriors.append(logits)
        stacked = tree.stack(states, 1)
        return CoreOutput(states=stacked, posterior=torch.stack(posteriors, 1), prior=self.prior(stacked.deter))

    def _posterior_logits(self, seen: Tensor) -> Tensor:
        return self._groups(self.posterior_head(seen))

    def _groups(self, logits: Tensor) -> Tensor:
        return logits.float().unflatten(-1, (self.config.stoch, self.config.classes))


_Advanced = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
"""deter, and for each layer the states of convolution and scan."""


def _with_time(advanced: _Advanced) -> _Advanced:
    """(B, ...) -> (B, 1, ...)"""
    return tree.map(lambda x: x.unsqueeze(1), advanced)
