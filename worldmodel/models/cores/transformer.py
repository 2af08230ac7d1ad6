"""A Transformer over a window of the past, with categorical latents (STORM, Zhang et al. 2023).

What related methods would add, and where it would go: TWISTER (Burchi and Timofte 2025) predicts latents of augmented
views several steps ahead by contrast: an Objective that is also given actions. Simulus (Cohen et al. 2025) has many
tokens for a frame, predicted in parallel: a Core whose step is a block of inputs; its HL-Gauss reward is a head, its
curiosity an ensemble behind ``Uncertain``, its replay a Sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.errors import MisfitError, check_range
from worldmodel.kernels.segments import segment_ids
from worldmodel.models.cores.base import CoreOutput
from worldmodel.models.cores.sequence import Actions, SequenceCore
from worldmodel.nn.attention import Block, LayerNorm, Shared, Sight, turns
from worldmodel.nn.blocks import Linear
from worldmodel.tree import struct


@struct
class TransformerState:
    """What the blocks made of the past, a categorical sample, and the keys and values of the last inputs."""

    deter: Tensor
    """(..., D)"""
    stoch: Tensor
    """(..., Z, K) one-hot."""
    keys: tuple[Tensor, ...]
    """For each layer (..., W-1, D), the latest last; those since the fork, turned, where a past is shared; empty after
    :meth:`Transformer.trim`."""
    values: tuple[Tensor, ...]
    """As ``keys``."""
    seen: Tensor
    """(...) int64 in [0, W], inputs that the next one follows on: so many of the last keys count, W-1 at most."""
    shared: tuple[Shared, ...] = ()
    """For each layer the window before the fork, of every n rows; empty before :meth:`Transformer.fork`."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of STORM's world model by default (arXiv 2310.09615); what STORM has besides is in ``configs``."""

    width: int = 512
    """D, width of the deterministic state and between blocks."""
    layers: int = 2
    heads: int = 8
    ffn: int = 1024
    """Width inside a block's second half."""
    window: int = 64
    """W, inputs that a step sees in each layer, its own among them."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary positions are relative: the window slides along, without a limit. Learned ones count from where an episode
    or a sequence begins: after W inputs the count starts again and what came before is forgotten, as at the start of a
    training sequence, which may have W steps at most."""
    norm: Literal["pre", "post"] = "pre"
    """Where the norms of a block are: before its halves, or after their residuals."""
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
    """Share of attention weights and of the halves' outputs that is dropped while the model learns from sequences."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"a Transformer core needs at least 1 layer, got {self.layers}")
        check_range(self, 1, "width", "heads", "ffn", "stoch", "hidden")
        check_range(self, 2, "classes")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, got {self.width}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"rotary positions turn pairs, so width / heads must be even, got {self.width} / {self.heads}"
            )
        if self.window < 2:
            raise ValueError(f"window must be at least 2 inputs, got {self.window}")
        for name in ("unimix", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def build(self, action_size: int, token_size: int) -> Transformer:
        return Transformer(self, action_size, token_size)


class Transformer(SequenceCore[TransformerState]):
    """Transformer blocks over what was seen and done (see :class:`SequenceCore`).

    With the published order, ``deter_t`` is STORM's hidden state of step t-1, from which it predicts frame, reward and
    end of step t. Where an episode begins, the window begins anew.

    A state holds its window, (W-1) 2 D numbers a layer. To begin dreams at every step of a batch is cheap for small
    models; with STORM's sizes it takes 0.5 MB a step, and short windows of replay are the published way. Rollouts
    :meth:`fork` the states that they begin in: one copy of each window serves all candidates and steps.
    """

    def __init__(self, config: TransformerConfig, action_size: int, token_size: int) -> None:
        super().__init__(config, config.width)
        c = config
        self.embed = nn.Sequential(
            Linear(self.stoch_size + action_size, c.width, bias=False), LayerNorm(c.width), nn.ReLU(),
            Linear(c.width, c.width, bias=False), LayerNorm(c.width),
        )
        self.positions: nn.Parameter | None = None
        if c.positions == "learned":
            self.positions = nn.Parameter(torch.randn(c.window, c.width))
        # where norms follow the residuals the blocks take in what is normed, else they give what is not
        self.enter = LayerNorm(c.width) if c.norm == "post" else nn.Identity()
        self.leave = LayerNorm(c.width) if c.norm == "pre" else nn.Identity()
        scale = 1.0 if c.norm == "post" else (2 * c.layers) ** -0.5
        self.blocks = nn.ModuleList(
            Block(c.width, c.heads, c.ffn, norm=c.norm, dropout=c.dropout, out_scale=scale) for _ in range(c.layers)
        )
        self._build_heads(action_size, token_size)

    def initial(self, batch_size: int) -> TransformerState:
        """Zeros; nothing is learned here."""
        c, like = self.config, self.get_parameter("embed.0.weight")
        past = tuple(like.new_zeros(batch_size, c.window - 1, c.width) for _ in range(c.layers))
        return TransformerState(
            deter=like.new_zeros(batch_size, c.width), stoch=like.new_zeros(batch_size, c.stoch, c.classes),
            keys=past, values=tuple(x.clone() for x in past),
            seen=torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

    def observe(
        self, state: TransformerState, tokens: Tensor, prev_action: Tensor, is_first: Tensor
    ) -> CoreOutput[TransformerState]:
        """(B, ...), (B, T, E), (B, T, A), (B, T) -> (B, T, ...).

        Raises: MisfitError for more steps than there are learned positions.
        """
        c, time = self.config, is_first.shape[1]
        if c.positions == "learned" and time > c.window:
            raise MisfitError(
                f"a sequence of {time} steps is longer than the {c.window} learned positions; take shorter ones "
                f"(replay.length), a larger window, or positions='rotary', which have no limit"
            )
        return super().observe(self._alone(state), tokens, prev_action, is_first)

    def fork(self, state: TransformerState, n: int) -> TransformerState:
        """(B, ...) -> (B n, ...), each row n times, for :meth:`step`: n rows share one copy of their window."""
        shared, past = state.shared, (state.keys, state.values)
        if not shared:
            table = self._turns(self.config.window - 1, state.seen.device)
            shared = tuple(
                block.attention.share(k, v, table)
                for block, k, v in zip(self._blocks, state.keys, state.values)
            )
            past = tree.map(lambda x: x[:, :0], past)
        deter, stoch, seen, past = tree.map(
            lambda x: x.repeat_interleave(n, 0), (state.deter, state.stoch, state.seen, past)
        )
        return TransformerState(deter=deter, stoch=stoch, seen=seen, keys=past[0], values=past[1], shared=shared)

    def trim(self, state: TransformerState) -> TransformerState:
        """Without the window, which only ``observe`` and ``step`` read: a dream need not keep it."""
        return replace(state, keys=(), values=(), shared=())

    def _count(self, seen: Tensor, is_first: Tensor) -> Tensor:
        """(B,) and (B, T) to (B, T): inputs in the window after each step, that step's own among them, 1 to W."""
        segments = segment_ids(is_first)
        same = segments.unsqueeze(2) == segments.unsqueeze(1)
        earlier = same.tril(-1).sum(-1) + seen.unsqueeze(1) * (segments == 0)
        window = self.config.window
        return earlier % window + 1 if self.positions is not None else (earlier + 1).clamp(max=window)

    def _scan(self, state: TransformerState, x: Tensor, is_first: Tensor) -> TransformerState:
        past, time = self.config.window - 1, x.shape[1]
        seen = self._count(state.seen, is_first)
        if self.positions is not None:
            x = x + self.positions[seen - 1]
        at = torch.arange(past + time, device=x.device)
        # (T, P + T): how long before a query a key was; negative where it comes later
        age = at[past:].unsqueeze(1) - at
        sight = Sight(
            mask=(age >= 0) & (age < seen.unsqueeze(-1)),
            turns=self._turns(past + time, x.device),
        )
        # (B, T, P): which entries of each step's window are its own memory
        own = at[:past].flip(0) < seen.unsqueeze(-1)
        x, keys, values = self.enter(x), [], []
        for block, k, v in zip(self._blocks, state.keys, state.values):
            x, k, v = block(x, k, v, sight)
            keys.append(_windows(k, own))
            values.append(_windows(v, own))
        return replace(state, deter=self.leave(x).float(), keys=tuple(keys), values=tuple(values), seen=seen)

    def _advance(self, state: TransformerState, x: Tensor, is_first: Tensor | None) -> TransformerState:
        if is_first is None:
            is_first = torch.zeros_like(state.seen, dtype=torch.bool)
        x, is_first = x.unsqueeze(1), is_first.unsqueeze(1)
        if state.shared:
            return self._go_on(state, x, is_first)
        after = self._scan(state, x, is_first)
        deter, keys, values, seen = tree.index(
            (after.deter, after.keys, after.values, after.seen), (slice(None), 0)
        )
        return replace(state, deter=deter, keys=keys, values=values, seen=seen)

    def _go_on(self, state: TransformerState, x: Tensor, is_first: Tensor) -> TransformerState:
        """One step where a past is shared, and no episode begins: what came since grows by one."""
        seen = self._count(state.seen, is_first)
        if self.positions is not None:
            x = x + self.positions[seen - 1]
        count = self.config.window + state.keys[0].shape[1]
        # (count,): how long before now each input was
        age = torch.arange(count - 1, -1, -1, device=x.device)
        sight = Sight(mask=age < seen.unsqueeze(-1), turns=self._turns(count, x.device))
        x, keys, values = self.enter(x), [], []
        for block, k, v, shared in zip(self._blocks, state.keys, state.values, state.shared):
            x, k, v = block(x, k, v, sight, shared)
            keys.append(k)
            values.append(v)
        after = TransformerState(
            deter=self.leave(x).float()[:, 0], stoch=state.stoch, keys=tuple(keys), values=tuple(values),
            seen=seen[:, 0], shared=state.shared,
        )
        # an own past as long as the window leaves nothing of the shared one in sight
        return self._alone(after) if keys[0].shape[1] == self.config.window - 1 else after

    def _alone(self, state: TransformerState) -> TransformerState:
        """The state with a window of its own."""
        if not state.shared:
            return state
        gone = state.keys[0].shape[1]
        table = self._turns(self.config.window - 1 + gone, state.seen.device)
        keys, values = zip(*(
            block.attention.unshare(shared, k, v, None if table is None else table[gone:])
            for block, k, v, shared in zip(self._blocks, state.keys, state.values, state.shared)
        ))
        return replace(state, keys=keys, values=values, shared=())

    def _turns(self, count: int, device: torch.device) -> Tensor | None:
        """Of rotary positions 0, 1, ..., if there are any."""
        c = self.config
        return turns(count, c.width // c.heads, device) if c.positions == "rotary" else None

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def _windows(entries: Tensor, own: Tensor) -> Tensor:
    """(B, P + T, D) to (B, T, P, D): the P entries up to each step's own, 0 where not of its memory (B, T, P)."""
    # (B, T + 1, D, P): a view, of which the first window lies before the sequence
    windows = entries.unfold(1, own.shape[-1], 1)[:, 1:].transpose(2, 3)
    return torch.where(own.unsqueeze(-1), windows, 0.0)
