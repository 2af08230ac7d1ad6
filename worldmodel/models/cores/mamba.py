"""A stack of Mamba blocks with categorical latents: a sequence is filtered in parallel (Drama, Wang et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from worldmodel import tree
from worldmodel.errors import check_range
from worldmodel.kernels.segments import segment_ids
from worldmodel.models.cores.sequence import Actions, SequenceCore
from worldmodel.nn.blocks import Dense, RMSNorm
from worldmodel.nn.mamba import EPS, Mamba1, Mamba2
from worldmodel.tree import struct


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
    """What the posterior sees: the token alone, so that a sequence needs no loop over time, or what the prior reads as
    well, which costs that loop."""
    actions: Actions = "blocks"
    """Where the action of a step first meets what is remembered: in the blocks, beside the latents, as published, or in
    the prior of the next step alone. Then features say what the model knows of the next step before an action is
    chosen: what a policy needs where a task takes memory."""
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


class Mamba(SequenceCore[MambaState]):
    """Mamba blocks over what was seen and done (see :class:`SequenceCore`).

    With the published order, ``deter_t`` is Drama's hidden state of step t-1, from which it predicts frame, reward and
    end of step t. Where an episode begins, the states of convolutions and scans are forgotten.
    """

    def __init__(self, config: MambaConfig, action_size: int, token_size: int) -> None:
        super().__init__(config, config.d_model)
        c = config
        self.embed = Dense(self.stoch_size + action_size, c.d_model)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.dropout = nn.Dropout(c.dropout)
        self.norm = RMSNorm(c.d_model, eps=EPS)
        self._build_heads(action_size, token_size)

    def initial(self, batch_size: int) -> MambaState:
        """Zeros; nothing is learned here."""
        c, like = self.config, self.norm.scale
        conv, ssm = zip(*(block.mixer.initial(batch_size) for block in self._blocks))
        return MambaState(
            deter=like.new_zeros(batch_size, c.d_model), stoch=like.new_zeros(batch_size, c.stoch, c.classes),
            conv=tuple(conv), ssm=tuple(ssm),
        )

    def trim(self, state: MambaState) -> MambaState:
        """Without the blocks' states, which only ``observe`` and ``step`` read: a dream need not keep them."""
        return replace(state, conv=(), ssm=())

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _scan(self, state: MambaState, x: Tensor, is_first: Tensor) -> MambaState:
        if x.shape[1] == 1:
            # one step, which is acting, needs no preparations for a scan
            return tree.map(lambda y: y.unsqueeze(1), self._advance(state, x[:, 0], is_first[:, 0]))
        segments = segment_ids(is_first)
        return self._through(state, x, lambda block, y, conv, ssm: block.mixer(y, segments, conv, ssm))

    def _advance(self, state: MambaState, x: Tensor, is_first: Tensor | None) -> MambaState:
        return self._through(state, x, lambda block, y, conv, ssm: block.mixer.step(y, is_first, conv, ssm))

    def _through(self, state: MambaState, x: Tensor, mix: _Mix) -> MambaState:
        """Inputs (..., D) through the blocks, each mixed with its own past."""
        convs, ssms = [], []
        residual, y = x.float(), None
        for block, conv, ssm in zip(self._blocks, state.conv, state.ssm):
            residual = residual if y is None else residual + y
            y, conv, ssm = mix(block, block.norm(residual).to(x.dtype), conv, ssm)
            convs.append(conv)
            ssms.append(ssm)
        assert y is not None
        deter = self.norm(residual + self.dropout(y)).float()
        return replace(state, deter=deter, conv=tuple(convs), ssm=tuple(ssms))


_Mix = Callable[[Block, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""A block, its input (..., D), and the states of its convolution and scan, to its output and the next of these."""
