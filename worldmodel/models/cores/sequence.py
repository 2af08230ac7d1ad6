"""What cores over sequences have in common: a posterior that needs no memory, blocks that run over what was seen and
done, and a prior of what comes next. The blocks are the core's own (``mamba.py``, ``transformer.py``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.distributions import Categorical
from worldmodel.models.cores.base import CoreOutput
from worldmodel.nn.blocks import MLP, Dense, Linear
from worldmodel.types import ArraySpec


class SequenceState(Protocol):
    """What the states of these cores have in common; a dataclass."""

    @property
    def deter(self) -> Tensor:
        """(..., D) what the blocks gave."""
        ...

    @property
    def stoch(self) -> Tensor:
        """(..., Z, K) one-hot."""
        ...


S = TypeVar("S", bound=SequenceState)

Actions = Literal["blocks", "prior"]
"""Where the action of a step first meets what is remembered."""


class SequenceCore(nn.Module, ABC, Generic[S]):
    """Filters a sequence in parallel where the posterior sees the token alone, else step by step.

    With ``config.actions`` "blocks", as published,

        deter_t = blocks(stoch_{<t}, action_{<t}),  prior_t = head(deter_t):

    the input of step t is what was seen and done before it, zero where ``is_first``. ``deter`` is ready before the
    observation is, and a policy at t reads what the blocks looked up before they saw step t.

    With "prior",

        deter_t = blocks(stoch_{<=t}, action_{<t}),  prior_t = head(meet(deter_{t-1}, action_{t-1})):

    all that is known of what comes next is in ``deter`` before the action is chosen, since the prior has nothing else.
    """

    embed: nn.Module
    """Latents and actions (..., Z*K + A) to inputs of the blocks (..., D)."""

    def __init__(self, config: Any, width: int) -> None:
        """Args: config offers ``stoch, classes, hidden, img_layers, obs_layers, unimix, logit_scale, posterior,
        actions``; width of the deterministic state."""
        super().__init__()
        self.config = config
        self.deter_size, self.stoch_size = width, config.stoch * config.classes
        self.feature_dim = width + self.stoch_size

    def _build_heads(self, action_size: int, token_size: int) -> None:
        """Prior and posterior; last in a core's ``__init__``."""
        c, width, flat = self.config, self.deter_size, self.stoch_size
        self.prior_head = nn.Sequential(
            MLP(width, c.hidden, c.img_layers), Linear(c.hidden if c.img_layers else width, flat, scale=c.logit_scale)
        )
        sees = token_size + (width if c.posterior == "recurrent" else 0)
        self.posterior_head = nn.Sequential(
            MLP(sees, c.hidden, c.obs_layers), Linear(c.hidden if c.obs_layers else sees, flat, scale=c.logit_scale)
        )
        self.meet = Dense(width + action_size, width) if c.actions == "prior" else None

    @abstractmethod
    def initial(self, batch_size: int) -> S: ...

    @abstractmethod
    def _scan(self, state: S, x: Tensor, is_first: Tensor) -> S:
        """The blocks over inputs (B, T, D): states (B, T, ...), whose ``stoch`` the caller fills in."""

    @abstractmethod
    def _advance(self, state: S, x: Tensor, is_first: Tensor | None) -> S:
        """The blocks over one input (B, D), likewise; ``is_first`` None: nowhere."""

    def observe(self, state: S, tokens: Tensor, prev_action: Tensor, is_first: Tensor) -> CoreOutput[S]:
        """(B, ...), (B, T, E), (B, T, A), (B, T) -> (B, T, ...)."""
        c, (batch, time) = self.config, is_first.shape
        # (B, T, Z): one uniform number a group
        noise = torch.rand(batch, time, c.stoch, device=tokens.device)
        if c.posterior == "recurrent":
            return self._observe_by_steps(state, tokens, prev_action, is_first, noise)
        posterior = self._posterior_logits(tokens)
        stoch = Categorical(posterior, c.unimix).sample(noise)
        seen = stoch if self.meet is not None else torch.cat([state.stoch.unsqueeze(1), stoch[:, :-1]], 1)
        states = self._scan(state, self._embed(seen, prev_action, is_first), is_first)
        known = states.deter
        if self.meet is not None:
            known = torch.cat([state.deter.unsqueeze(1), known[:, :-1]], 1)
        prior = self._prior(self._expect(known, prev_action, is_first))
        return CoreOutput(states=_with(states, stoch=stoch), posterior=posterior, prior=prior)

    def step(self, state: S, action: Tensor) -> S:
        """One step of imagination; what comes is a sample of the prior."""
        if self.meet is None:
            after = self._advance(state, self._embed(state.stoch, action, None), None)
            return _with(after, stoch=self._sample(self._prior(after.deter)))
        stoch = self._sample(self._prior(self._expect(state.deter, action, None)))
        return _with(self._advance(state, self._embed(stoch, action, None), None), stoch=stoch)

    def _prior(self, expected: Tensor) -> Tensor:
        """(..., D) -> logits (..., Z, K)."""
        return self._groups(self.prior_head(expected))

    def features(self, state: S) -> Tensor:
        """(..., D + Z*K): deter first."""
        return torch.cat([state.deter, state.stoch.flatten(-2)], -1)

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """Nothing: what blocks remember of a step is many times its observation. Sequences begin from ``initial``."""
        return {}

    def pack(self, state: S) -> dict[str, Tensor]:
        return {}

    def unpack(self, memory: dict[str, Tensor]) -> S:
        raise ValueError(f"a {type(self).__name__} core keeps nothing in replay; begin from initial")

    def _embed(self, stoch: Tensor, action: Tensor, is_first: Tensor | None) -> Tensor:
        """(..., Z, K), (..., A) and (...) to inputs of the blocks (..., D); where an episode begins nothing was done
        before, and nothing seen where the input is of the step before."""
        flat, action = stoch.flatten(-2), _bounded(action, is_first)
        if is_first is not None and self.meet is None:
            flat = flat * (~is_first).float().unsqueeze(-1)
        return self.embed(torch.cat([flat, action], -1))

    def _expect(self, deter: Tensor, action: Tensor, is_first: Tensor | None) -> Tensor:
        """(..., D) what the prior reads: ``deter`` itself, or what it makes of the action; before an episode nothing is
        known."""
        if self.meet is None:
            return deter
        if is_first is not None:
            deter = deter * (~is_first).float().unsqueeze(-1)
        return self.meet(torch.cat([deter, _bounded(action, is_first)], -1))

    def _observe_by_steps(
        self, state: S, tokens: Tensor, prev_action: Tensor, is_first: Tensor, noise: Tensor
    ) -> CoreOutput[S]:
        states, posteriors, priors = [], [], []
        for t in range(is_first.shape[1]):
            action, first, after = prev_action[:, t], is_first[:, t], state
            if self.meet is None:
                after = self._advance(state, self._embed(state.stoch, action, first), first)
            expected = self._expect(after.deter, action, first)
            logits = self._posterior_logits(torch.cat([expected, tokens[:, t]], -1))
            stoch = self._sample(logits, noise[:, t])
            if self.meet is not None:
                after = self._advance(state, self._embed(stoch, action, first), first)
            state = _with(after, stoch=stoch)
            states.append(state)
            posteriors.append(logits)
            priors.append(expected)
        prior = self._prior(torch.stack(priors, 1))
        return CoreOutput(states=tree.stack(states, 1), posterior=torch.stack(posteriors, 1), prior=prior)

    def _sample(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        return Categorical(logits, self.config.unimix).sample(noise)

    def _posterior_logits(self, seen: Tensor) -> Tensor:
        return self._groups(self.posterior_head(seen))

    def _groups(self, logits: Tensor) -> Tensor:
        return logits.float().unflatten(-1, (self.config.stoch, self.config.classes))


def _bounded(action: Tensor, is_first: Tensor | None) -> Tensor:
    """Actions of unbounded spaces scaled back into [-1, 1]; none before an episode."""
    action = action / action.abs().clamp(min=1.0).detach()
    return action if is_first is None else action * (~is_first).float().unsqueeze(-1)


def _with(state: S, *, stoch: Tensor) -> S:
    changed: Any = state
    return replace(changed, stoch=stoch)
