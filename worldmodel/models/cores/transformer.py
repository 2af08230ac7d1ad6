"""A Transformer over a window of the past, with categorical latents (STORM, Zhang et al. 2023).

What related methods would add, and where it would go: TWISTER (Burchi and Timofte 2025) predicts latents of augmented
views several steps ahead by contrast: an Objective that is also given actions. Simulus (Cohen et al. 2025) has many
tokens for a frame, predicted in parallel: a Core whose step is a block of inputs; its HL-Gauss reward is a head, its
curiosity an ensemble behind ``Uncertain``, its replay a Sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.distributions import Categorical
from worldmodel.errors import MisfitError, check_range
from worldmodel.kernels.segments import segment_ids
from worldmodel.models.cores.base import CoreOutput
from worldmodel.nn.attention import Block, LayerNorm, Shared, Sight, turns
from worldmodel.nn.blocks import MLP, Linear
from worldmodel.tree import struct
from worldmodel.types import ArraySpec


@struct
class TransformerState:
    """What the blocks made of the past, a categorical sample, and the keys and values of the last inputs."""

    deter: Tensor
    """(..., D)"""
    stoch: Tensor
    """(..., Z, K) one-hot."""
    keys: tuple[Tensor, ...]
    """For each layer (..., W-1, D), the latest last; those since the fork where a past is shared; empty after
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
    """What the posterior sees: the token alone, so that a sequence needs no loop over time, or the deterministic state
    as well, which costs that loop."""
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


class _Attended(NamedTuple):
    """deter (B, T, D), and after every step what the next one needs."""

    deter: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    seen: Tensor


class Transformer(nn.Module):
    """deter_t = blocks(stoch_{<t}, action_{<t}); posterior from token_t; prior from deter_t.

    The input of step t is what was seen and done before it, so ``deter`` is ready before the observation is: STORM's
    hidden state of step t-1, from which it predicts frame, reward and end of step t. Where ``is_first``, that input is
    zero and the window begins anew.

    A state holds its window, (W-1) 2 D numbers a layer. To begin dreams at every step of a batch is cheap for small
    models; with STORM's sizes it takes 0.5 MB a step, and short windows of replay are the published way. Rollouts
    :meth:`fork` the states that they begin in, so they copy no window, neither for a candidate nor for a step.
    """

    def __init__(self, config: TransformerConfig, action_size: int, token_size: int) -> None:
        super().__init__()
        c = self.config = config
        flat = c.stoch * c.classes
        self.deter_size, self.stoch_size = c.width, flat
        self.feature_dim = c.width + flat
        self.embed = nn.Sequential(
            Linear(flat + action_size, c.width, bias=False), LayerNorm(c.width), nn.ReLU(),
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
        self.prior_head = nn.Sequential(
            MLP(c.width, c.hidden, c.img_layers),
            Linear(c.hidden if c.img_layers else c.width, flat, scale=c.logit_scale),
        )
        sees = token_size + (c.width if c.posterior == "recurrent" else 0)
        self.posterior_head = nn.Sequential(
            MLP(sees, c.hidden, c.obs_layers), Linear(c.hidden if c.obs_layers else sees, flat, scale=c.logit_scale)
        )

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
        """Filter (B, T): in parallel over T where the posterior sees the token alone, else step by step.

        Raises: MisfitError for more steps than there are learned positions.
        """
        c, (batch, time), state = self.config, is_first.shape, self._alone(state)
        if c.positions == "learned" and time > c.window:
            raise MisfitError(
                f"a sequence of {time} steps is longer than the {c.window} learned positions; take shorter ones "
                f"(replay.length), a larger window, or positions='rotary', which have no limit"
            )
        # (B, T, Z): one uniform number a group
        noise = torch.rand(batch, time, c.stoch, device=tokens.device)
        if c.posterior == "recurrent":
            return self._observe_by_steps(state, tokens, prev_action, is_first, noise)
        posterior = self._posterior_logits(tokens)
        stoch = Categorical(posterior, c.unimix).sample(noise)
        before = torch.cat([state.stoch.unsqueeze(1), stoch[:, :-1]], 1)
        after = self._attend(state, self._embed(before, prev_action, is_first), is_first)
        states = TransformerState(
            deter=after.deter, stoch=stoch, keys=after.keys, values=after.values, seen=after.seen
        )
        return CoreOutput(states=states, posterior=posterior, prior=self.prior(after.deter))

    def step(self, state: TransformerState, action: Tensor) -> TransformerState:
        """One step of imagination: the blocks, then a sample of the prior."""
        goes_on = torch.zeros_like(state.seen, dtype=torch.bool)
        after = self._go_on(state, action, goes_on) if state.shared else self._advance(state, action, goes_on)
        stoch = Categorical(self.prior(after.deter), self.config.unimix).sample()
        # an own past as long as the window leaves nothing of the shared one in sight
        is_alone = after.keys[0].shape[1] == self.config.window - 1
        return TransformerState(
            deter=after.deter, stoch=stoch, keys=after.keys, values=after.values, seen=after.seen,
            shared=() if is_alone else state.shared,
        )

    def fork(self, state: TransformerState, n: int) -> TransformerState:
        """(B, ...) -> (B n, ...), each row n times, for :meth:`step`: the windows are shared, not copied."""
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

    def prior(self, deter: Tensor) -> Tensor:
        """(..., D) -> logits (..., Z, K)."""
        return self._groups(self.prior_head(deter))

    def features(self, state: TransformerState) -> Tensor:
        """(..., D + Z*K): deter first."""
        return torch.cat([state.deter, state.stoch.flatten(-2)], -1)

    def trim(self, state: TransformerState) -> TransformerState:
        """Without the window, which only ``observe`` and ``step`` read: a dream need not keep it."""
        return replace(state, keys=(), values=(), shared=())

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """Nothing: a window is many times its observation. Sequences begin from ``initial``."""
        return {}

    def pack(self, state: TransformerState) -> dict[str, Tensor]:
        return {}

    def unpack(self, memory: dict[str, Tensor]) -> TransformerState:
        raise ValueError("a Transformer core keeps nothing in replay; begin from initial")

    def _embed(self, stoch: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """(B, T, Z, K), (B, T, A) and (B, T) to inputs of the blocks (B, T, D)."""
        # actions of unbounded spaces are scaled back into [-1, 1]
        action = action / action.abs().clamp(min=1.0).detach()
        x = torch.cat([stoch.flatten(-2), action], -1)
        return self.embed(x * (~is_first).float().unsqueeze(-1))

    def _count(self, seen: Tensor, is_first: Tensor) -> Tensor:
        """(B,) and (B, T) to (B, T): inputs in the window after each step, that step's own among them, 1 to W."""
        segments = segment_ids(is_first)
        same = segments.unsqueeze(2) == segments.unsqueeze(1)
        earlier = same.tril(-1).sum(-1) + seen.unsqueeze(1) * (segments == 0)
        window = self.config.window
        return earlier % window + 1 if self.positions is not None else (earlier + 1).clamp(max=window)

    def _attend(self, state: TransformerState, x: Tensor, is_first: Tensor) -> _Attended:
        """Inputs (B, T, D) to deter, with the windows after every step."""
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
        return _Attended(self.leave(x).float(), tuple(keys), tuple(values), seen)

    def _advance(self, state: TransformerState, action: Tensor, is_first: Tensor) -> _Attended:
        """One step (B, ...): a sequence of one."""
        action, is_first = action.unsqueeze(1), is_first.unsqueeze(1)
        after = self._attend(state, self._embed(state.stoch.unsqueeze(1), action, is_first), is_first)
        return tree.index(after, (slice(None), 0))

    def _go_on(self, state: TransformerState, action: Tensor, is_first: Tensor) -> _Attended:
        """As :meth:`_advance` where a past is shared and no episode begins: what came since grows by one."""
        x = self._embed(state.stoch.unsqueeze(1), action.unsqueeze(1), is_first.unsqueeze(1))
        seen = self._count(state.seen, is_first.unsqueeze(1))
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
        return _Attended(self.leave(x).float()[:, 0], tuple(keys), tuple(values), seen[:, 0])

    def _alone(self, state: TransformerState) -> TransformerState:
        """The state with a window of its own."""
        if not state.shared:
            return state
        past = self.config.window - 1
        table = self._turns(past, state.seen.device)
        keys, values = [], []
        for block, k, v, shared in zip(self._blocks, state.keys, state.values, state.shared):
            before, seen = block.attention.unshare(shared, table)
            n = k.shape[0] // before.shape[0]
            keys.append(torch.cat([before.repeat_interleave(n, 0), k], 1)[:, -past:])
            values.append(torch.cat([seen.repeat_interleave(n, 0), v], 1)[:, -past:])
        return replace(state, keys=tuple(keys), values=tuple(values), shared=())

    def _turns(self, count: int, device: torch.device) -> Tensor | None:
        """Of rotary positions 0, 1, ..., if there are any."""
        c = self.config
        return turns(count, c.width // c.heads, device) if c.positions == "rotary" else None

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _observe_by_steps(
        self, state: TransformerState, tokens: Tensor, prev_action: Tensor, is_first: Tensor, noise: Tensor
    ) -> CoreOutput[TransformerState]:
        states, posteriors = [], []
        for t in range(is_first.shape[1]):
            after = self._advance(state, prev_action[:, t], is_first[:, t])
            logits = self._posterior_logits(torch.cat([after.deter, tokens[:, t]], -1))
            stoch = Categorical(logits, self.config.unimix).sample(noise[:, t])
            state = TransformerState(
                deter=after.deter, stoch=stoch, keys=after.keys, values=after.values, seen=after.seen
            )
            states.append(state)
            posteriors.append(logits)
        stacked = tree.stack(states, 1)
        return CoreOutput(states=stacked, posterior=torch.stack(posteriors, 1), prior=self.prior(stacked.deter))

    def _posterior_logits(self, seen: Tensor) -> Tensor:
        return self._groups(self.posterior_head(seen))

    def _groups(self, logits: Tensor) -> Tensor:
        return logits.float().unflatten(-1, (self.config.stoch, self.config.classes))


def _windows(entries: Tensor, own: Tensor) -> Tensor:
    """(B, P + T, D) to (B, T, P, D): the P entries up to each step's own, 0 where not of its memory (B, T, P)."""
    # (B, T + 1, D, P): a view, of which the first window lies before the sequence
    windows = entries.unfold(1, own.shape[-1], 1)[:, 1:].transpose(2, 3)
    return torch.where(own.unsqueeze(-1), windows, 0.0)
