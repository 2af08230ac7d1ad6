"""A world model of your own, complete in one file: a GRU with categorical latents.

    worldmodel check examples/my_model.py:MyModelConfig
    worldmodel train examples/my_model.py:run --run-dir runs/mine
    worldmodel eval runs/mine --allow examples/my_model.py

The agent, the replay, the environments and the trainer are worldmodel's; they know this model only by the methods below
(``worldmodel.protocols.WorldModel``, and the abilities ``Decodes`` and ``Remembers``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import OneHotCategoricalStraightThrough, kl_divergence

from worldmodel import tree
from worldmodel.config import Run
from worldmodel.configs.quickstart import quickstart
from worldmodel.nn.blocks import Dense, Linear
from worldmodel.nn.decoders import PatchDecoderConfig
from worldmodel.nn.encoders import PatchEncoderConfig
from worldmodel.types import ArraySpec, Batch, EnvSpec, Prediction


@tree.struct
class MyState:
    """What the model knows; nobody else looks inside."""

    memory: Tensor
    """(..., D) of the GRU."""
    latent: Tensor
    """(..., Z K) a sample of Z choices, one-hot."""


@dataclass(frozen=True, kw_only=True)
class MyModelConfig:
    """Every field is an option: ``--agent.model.memory 256``."""

    memory: int = 128
    """D, width of the GRU."""
    choices: int = 16
    """Z, categorical latents."""
    classes: int = 8
    """K, of each."""
    units: int = 128
    """Width of the layers around it."""
    free_nats: float = 1.0
    """KL below this exerts no pull."""
    prior_scale: float = 1.0
    """Weight of KL[posterior || prior] as the prior's loss."""
    posterior_scale: float = 0.025
    """Weight of the same KL as the posterior's loss."""

    def __post_init__(self) -> None:
        if min(self.memory, self.choices, self.units) < 1 or self.classes < 2:
            raise ValueError(
                f"memory, choices and units must be at least 1 and classes 2, got {self.memory}, {self.choices}, "
                f"{self.units} and {self.classes}"
            )

    def build(self, spec: EnvSpec) -> MyModel:
        return MyModel(self, spec)


class MyModel(nn.Module):
    """memory' = GRU(memory, latent, action); prior from memory'; posterior from (memory', picture)."""

    def __init__(self, config: MyModelConfig, spec: EnvSpec) -> None:
        super().__init__()
        c = self.config = config
        self.sizes = {"memory": c.memory, "latent": c.choices * c.classes}
        self.feature_dim = sum(self.sizes.values())
        self.loss_scales = {
            "observation": 1.0, "prior": c.prior_scale, "posterior": c.posterior_scale, "reward": 1.0, "continue": 1.0,
        }
        # networks of worldmodel's for every kind of observation; your own would do as well
        self.encoder = PatchEncoderConfig(patch=4, width=16, units=c.units).build(spec.obs)
        self.decoder = PatchDecoderConfig(patch=4, width=16, units=c.units).build(spec.obs, *self.sizes.values())
        latent = self.sizes["latent"]
        self.enter = _mlp(latent + spec.action.size, c.units, c.units)
        self.gru = nn.GRUCell(c.units, c.memory)
        self.prior = _mlp(c.memory, c.units, latent)
        self.posterior = _mlp(c.memory + int(self.encoder.out_dim), c.units, latent)
        self.reward = _mlp(self.feature_dim, c.units, 1)
        self.continues = _mlp(self.feature_dim, c.units, 1)

    # The recurrence

    def initial(self, batch_size: int) -> MyState:
        like = self.gru.weight_hh  # of the right type, on the right device
        return MyState(**{name: like.new_zeros(batch_size, size) for name, size in self.sizes.items()})

    def observe(self, state: MyState, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> MyState:
        return self._filter(state, obs, prev_action, is_first)[0]

    def step(self, state: MyState, action: Tensor) -> MyState:
        memory = self._recur(state, action)
        return MyState(memory=memory, latent=self._sample(self.prior(memory)))

    def features(self, state: MyState) -> Tensor:
        return torch.cat([state.memory, state.latent], -1)

    def predict(self, previous: MyState, action: Tensor, state: MyState) -> Prediction:
        features = self.features(state)
        return Prediction(
            reward=self.reward(features).squeeze(-1).float(),
            continues=torch.sigmoid(self.continues(features).squeeze(-1).float()),
        )

    # Learning

    def loss(self, batch: Batch, state: MyState) -> tuple[dict[str, Tensor], MyState]:
        states, posterior = self._filter(state, batch.obs, batch.prev_action, batch.is_first)
        features = self.features(states)
        prior = self.prior(states.memory)
        goes_on = (~batch.is_terminal).float()
        losses = {
            "observation": self.decoder.loss(features, batch.obs),
            "prior": self._kl(posterior.detach(), prior).clamp(min=self.config.free_nats),
            "posterior": self._kl(posterior, prior.detach()).clamp(min=self.config.free_nats),
            "reward": (self.reward(features).squeeze(-1).float() - batch.reward).square(),
            "continue": F.binary_cross_entropy_with_logits(
                self.continues(features).squeeze(-1).float(), goes_on, reduction="none"
            ),
        }
        return losses, states

    # Abilities

    def decode(self, state: MyState) -> dict[str, Tensor]:
        """``Decodes``: dreams can be filmed."""
        decoded = self.decoder(self.features(state))
        return {key: decoded[key] for key in self.decoder.image_keys}

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """``Remembers``: sequences of replay begin from the latents that were there, not from nothing."""
        return {name: ArraySpec(shape=(size,), dtype="bfloat16") for name, size in self.sizes.items()}

    def pack(self, state: MyState) -> dict[str, Tensor]:
        return {name: getattr(state, name).detach().bfloat16() for name in self.sizes}

    def unpack(self, memory: dict[str, Tensor]) -> MyState:
        return MyState(memory=memory["memory"].float(), latent=memory["latent"].float())

    # Inside

    def _filter(
        self, state: MyState, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor
    ) -> tuple[MyState, Tensor]:
        """States (B, T, ...) and the logits (B, T, Z K) of their posteriors."""
        # (B, T, h, w, C) -> (B, T, E): what does not recur is computed for all steps at once
        tokens = self.encoder(obs)
        nothing = self.initial(is_first.shape[0])
        states, posteriors = [], []
        for t in range(is_first.shape[1]):
            # an episode that begins here knows nothing of the one before
            state = tree.where(is_first[:, t], nothing, state)
            memory = self._recur(state, prev_action[:, t] * (~is_first[:, t, None]))
            posterior = self.posterior(torch.cat([memory, tokens[:, t]], -1))
            state = MyState(memory=memory, latent=self._sample(posterior))
            states.append(state)
            posteriors.append(posterior)
        return tree.stack(states, 1), torch.stack(posteriors, 1)

    def _recur(self, state: MyState, action: Tensor) -> Tensor:
        return self.gru(self.enter(torch.cat([state.latent, action], -1)), state.memory).float()

    def _choices(self, logits: Tensor) -> OneHotCategoricalStraightThrough:
        """(..., Z K) -> (..., Z) choices, in float32; none is ever less likely than a hundredth of the uniform."""
        probs = logits.float().unflatten(-1, (-1, self.config.classes)).softmax(-1)
        return OneHotCategoricalStraightThrough(0.99 * probs + 0.01 / self.config.classes, validate_args=False)

    def _sample(self, logits: Tensor) -> Tensor:
        """(..., Z K) one-hot; the gradient goes straight through."""
        return self._choices(logits).rsample().flatten(-2)

    def _kl(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """(..., Z K) twice -> (...) nats."""
        return kl_divergence(self._choices(posterior), self._choices(prior)).sum(-1)


def _mlp(inputs: int, units: int, outputs: int) -> nn.Sequential:
    # worldmodel's layers begin with larger weights than torch's: pictures get into the latents sooner
    return nn.Sequential(Dense(inputs, units), Linear(units, outputs))


def run(task: str = "catch") -> Run:
    """Catch, Glide or Recall with this model."""
    base = quickstart(task)  # type: ignore[arg-type]
    return replace(base, agent=replace(base.agent, model=MyModelConfig()))
