"""Recurrent state-space model with a block-diagonal GRU and categorical latents (DreamerV3, 2024 version)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.distributions import Categorical
from worldmodel.errors import check_range
from worldmodel.kernels import block_gru_observe
from worldmodel.models.cores.base import CoreOutput
from worldmodel.nn.blocks import MLP, BlockLinear, Dense, Linear, RMSNorm, log_uniform
from worldmodel.tree import struct
from worldmodel.types import ArraySpec


@struct
class RSSMState:
    """Deterministic memory and a categorical sample."""

    deter: Tensor
    """(..., D)"""
    stoch: Tensor
    """(..., Z, K) one-hot."""


@dataclass(frozen=True, kw_only=True)
class RSSMConfig:
    """Recurrent core; widths by :data:`worldmodel.configs.sizes.SIZES`."""

    deter: int = 8192
    """D, width of the recurrent state."""
    hidden: int = 1024
    """Width of every layer around it."""
    stoch: int = 32
    """Z, categorical groups."""
    classes: int = 64
    """K, classes of a group."""
    blocks: int = 8
    """Groups of the block-diagonal recurrent layers."""
    dyn_layers: int = 1
    """Block-linear layers before the gates."""
    obs_layers: int = 1
    """Hidden layers of the posterior."""
    img_layers: int = 2
    """Hidden layers of the prior."""
    unimix: float = 0.01
    """Share of the uniform distribution in prior and posterior."""
    logit_scale: float = 1.0
    """Multiplies the initial weights of the logits. Published: 1. Larger values make the first samples say more about
    the picture than about chance, and small moving things are then learned several times sooner (small models on
    CPUs)."""
    remember: int | None = None
    """Steps that the slowest unit remembers when learning begins. Published: None, and every gate begins open by 0.27:
    a unit keeps 1e-9 of what it was 64 steps before. Else units begin with time constants log-uniform between 2 and
    this many steps (after Tallec and Ollivier 2018, section 2)."""
    posterior: Literal["recurrent", "frame"] = "recurrent"
    """What the posterior sees: the recurrent state and the token, or the token alone (then it needs no recurrence)."""
    observe: Literal["fused", "loop"] = "fused"
    """How a sequence is filtered: by one operation with a backward pass of its own, or by a loop that autograd follows.
    The same numbers; fused serves ``dyn_layers = obs_layers = 1`` with a recurrent posterior, the loop all else."""

    def __post_init__(self) -> None:
        check_range(self, 1, "deter", "hidden", "stoch", "blocks", "dyn_layers")
        check_range(self, 0, "obs_layers", "img_layers")
        check_range(self, 2, "classes")
        if self.remember is not None:
            check_range(self, 2, "remember")
        if self.deter % self.blocks:
            raise ValueError(f"deter must be a multiple of blocks={self.blocks}, got {self.deter}")
        if not 0 <= self.unimix < 1:
            raise ValueError(f"unimix must be in [0, 1), got {self.unimix}")

    def build(self, action_size: int, token_size: int) -> RSSM:
        return RSSM(self, action_size, token_size)


class RSSM(nn.Module):
    """deter' = GRU(deter, stoch, action); posterior from (deter', token); prior from deter'."""

    def __init__(self, config: RSSMConfig, action_size: int, token_size: int) -> None:
        super().__init__()
        c = self.config = config
        flat = c.stoch * c.classes
        self.deter_size, self.stoch_size = c.deter, flat
        self.feature_dim = c.deter + flat
        self.from_deter = Dense(c.deter, c.hidden)
        self.from_stoch = Dense(flat, c.hidden)
        self.from_action = Dense(action_size, c.hidden)
        # the full input is copied to each block beside the block's own share of deter
        widths = [c.deter + c.blocks * 3 * c.hidden] + [c.deter] * c.dyn_layers
        self.mix = nn.ModuleList(BlockLinear(a, b, c.blocks) for a, b in itertools.pairwise(widths))
        self.mix_norms = nn.ModuleList(RMSNorm(c.deter) for _ in self.mix)
        self.gates = BlockLinear(widths[-1], 3 * c.deter, c.blocks)
        if c.remember is not None:
            # a gate is sigmoid(bias - 1) open, 1 / (time constant)
            update = self.gates.bias.detach().unflatten(0, (c.blocks, 3, -1))[:, 2]
            update.copy_(1 - (log_uniform(update.shape, 2, c.remember) - 1).log())
        self.prior_head = nn.Sequential(
            MLP(c.deter, c.hidden, c.img_layers), Linear(c.hidden, flat, scale=c.logit_scale)
        )
        posterior_inputs = token_size + (c.deter if c.posterior == "recurrent" else 0)
        self.posterior_head = nn.Sequential(
            MLP(posterior_inputs, c.hidden, c.obs_layers), Linear(c.hidden, flat, scale=c.logit_scale)
        )

    def initial(self, batch_size: int) -> RSSMState:
        """Zeros; nothing is learned here."""
        c, like = self.config, self.gates.bias
        return RSSMState(
            deter=like.new_zeros(batch_size, c.deter), stoch=like.new_zeros(batch_size, c.stoch, c.classes)
        )

    def observe(self, state: RSSMState, tokens: Tensor, prev_action: Tensor, is_first: Tensor) -> CoreOutput[RSSMState]:
        """Filter (B, T). Where ``is_first``, deter, stoch and the previous action become zero before the recurrence."""
        batch, time = is_first.shape
        keep = (~is_first).float()
        # (B, T, hidden): what does not recur is computed for all steps at once
        actions = self._embed_action(prev_action * keep.unsqueeze(-1))
        # (B, T, Z): one uniform number a group
        noise = torch.rand(batch, time, self.config.stoch, device=tokens.device)
        # one step, which is acting, is quicker without the operation's preparations
        if self._is_fused and time > 1:
            return self._observe_fused(state, tokens, actions, keep, noise)
        if self.config.posterior == "frame":
            return self._observe_frames(state, tokens, actions, keep, noise)
        deter, stoch = state.deter, state.stoch
        deters, stochs, posts = [], [], []
        for t in range(time):
            alive = keep[:, t, None]
            deter = self._recur(deter * alive, stoch * alive.unsqueeze(-1), actions[:, t])
            logits = self._posterior_logits(deter, tokens[:, t])
            stoch = Categorical(logits, self.config.unimix).sample(noise[:, t])
            deters.append(deter)
            stochs.append(stoch)
            posts.append(logits)
        states = RSSMState(deter=torch.stack(deters, 1), stoch=torch.stack(stochs, 1))
        return CoreOutput(states=states, posterior=torch.stack(posts, 1), prior=self.prior(states.deter))

    def _observe_frames(
        self, state: RSSMState, tokens: Tensor, actions: Tensor, keep: Tensor, noise: Tensor
    ) -> CoreOutput[RSSMState]:
        """Posteriors that need no memory: they, their samples and what the memory reads of these are computed for all
        steps at once, and the loop is the recurrence alone."""
        posterior = self._posterior_logits(None, tokens)
        stoch = Categorical(posterior, self.config.unimix).sample(noise)
        before = torch.cat([state.stoch.unsqueeze(1), stoch[:, :-1]], 1) * keep[..., None, None]
        read = self.from_stoch(before.flatten(-2))
        deter, deters = state.deter, []
        for t in range(keep.shape[1]):
            deter = self._mix(deter * keep[:, t, None], read[:, t], actions[:, t])
            deters.append(deter)
        states = RSSMState(deter=torch.stack(deters, 1), stoch=stoch)
        return CoreOutput(states=states, posterior=posterior, prior=self.prior(states.deter))

    @property
    def _is_fused(self) -> bool:
        c = self.config
        return c.observe == "fused" and c.dyn_layers == c.obs_layers == 1 and c.posterior == "recurrent"

    def _observe_fused(
        self, state: RSSMState, tokens: Tensor, actions: Tensor, keep: Tensor, noise: Tensor
    ) -> CoreOutput[RSSMState]:
        """The loop as one operation, time first. ``actions`` (B, T, hidden) embedded."""
        own = self.get_parameter
        # (h, D + E): the token's share of the posterior's hidden layer does not recur
        from_deter, from_token = own("posterior_head.0.0.0.weight").split([self.deter_size, tokens.shape[-1]], 1)
        token = F.linear(tokens, from_token, own("posterior_head.0.0.0.bias"))
        weights = block_gru_observe.Weights(
            deter=_cast(own("from_deter.0.weight")),
            deter_bias=own("from_deter.0.bias"),
            deter_scale=own("from_deter.1.scale"),
            stoch=_cast(own("from_stoch.0.weight")),
            stoch_bias=own("from_stoch.0.bias"),
            stoch_scale=own("from_stoch.1.scale"),
            mix=_cast(own("mix.0.weight")),
            mix_bias=own("mix.0.bias"),
            mix_scale=own("mix_norms.0.scale"),
            gates=_cast(own("gates.weight")),
            gates_bias=own("gates.bias"),
            posterior=_cast(from_deter),
            posterior_scale=own("posterior_head.0.0.1.scale"),
            logits=_cast(own("posterior_head.1.weight")),
            logits_bias=own("posterior_head.1.bias"),
        )
        out = block_gru_observe.observe(
            state.deter, state.stoch, keep.t(), actions.transpose(0, 1), token.transpose(0, 1), noise.transpose(0, 1),
            weights, unimix=self.config.unimix,
        )
        deter, stoch, posterior = (x.transpose(0, 1) for x in out)
        return CoreOutput(states=RSSMState(deter=deter, stoch=stoch), posterior=posterior, prior=self.prior(deter))

    def step(self, state: RSSMState, action: Tensor) -> RSSMState:
        """One step of imagination: recurrence, then a sample of the prior."""
        deter = self._recur(state.deter, state.stoch, self._embed_action(action))
        return RSSMState(deter=deter, stoch=Categorical(self.prior(deter), self.config.unimix).sample())

    def prior(self, deter: Tensor) -> Tensor:
        """(..., D) -> logits (..., Z, K)."""
        return self._groups(self.prior_head(deter))

    def features(self, state: RSSMState) -> Tensor:
        """(..., D + Z*K): deter first."""
        return torch.cat([state.deter, state.stoch.flatten(-2)], -1)

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        c = self.config
        return {
            "deter": ArraySpec(shape=(c.deter,), dtype="bfloat16"),
            "stoch": ArraySpec(shape=(c.stoch,), dtype="uint8" if c.classes <= 256 else "int16"),
        }

    def pack(self, state: RSSMState) -> dict[str, Tensor]:
        """One-hots as class indices, memory as bfloat16: 2 D + Z bytes a step."""
        index = state.stoch.argmax(-1)
        return {
            "deter": state.deter.detach().to(torch.bfloat16),
            "stoch": index.to(torch.uint8 if self.config.classes <= 256 else torch.int16),
        }

    def unpack(self, memory: dict[str, Tensor]) -> RSSMState:
        return RSSMState(
            deter=memory["deter"].float(),
            stoch=F.one_hot(memory["stoch"].long(), self.config.classes).float(),
        )

    def _embed_action(self, action: Tensor) -> Tensor:
        # actions of unbounded spaces are scaled back into [-1, 1]
        return self.from_action(action / action.abs().clamp(min=1.0).detach())

    def _posterior_logits(self, deter: Tensor | None, token: Tensor) -> Tensor:
        return self._groups(self.posterior_head(token if deter is None else torch.cat([deter, token], -1)))

    def _recur(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """(B, D), (B, Z, K), embedded action (B, hidden) -> (B, D)."""
        return self._mix(deter, self.from_stoch(stoch.flatten(-2)), action)

    def _mix(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """(B, D), and stoch and action embedded (B, hidden) -> (B, D)."""
        blocks = self.config.blocks
        shared = torch.cat([self.from_deter(deter), stoch, action], -1)
        # (B, blocks, D/blocks + 3 hidden)
        own = deter.unflatten(-1, (blocks, -1))
        x = torch.cat([own, shared.unsqueeze(-2).expand(-1, blocks, -1)], -1).flatten(-2)
        for layer, norm in zip(self.mix, self.mix_norms):
            x = F.silu(norm(layer(x)))
        # each block holds its own (reset, candidate, update)
        gates = self.gates(x).unflatten(-1, (blocks, 3, -1))
        reset, candidate, update = (g.flatten(-2) for g in gates.unbind(-2))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return deter + torch.sigmoid(update - 1.0) * (candidate - deter)

    def _groups(self, logits: Tensor) -> Tensor:
        return logits.float().unflatten(-1, (self.config.stoch, self.config.classes))


def _cast(weight: Tensor) -> Tensor:
    """To the type that autocast computes products in, where it is on."""
    kind = weight.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return weight.to(torch.get_autocast_dtype(kind)) if is_on else weight
