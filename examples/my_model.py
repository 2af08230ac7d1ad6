"""A world model of your own, complete in one file: a GRU with a Gaussian latent.

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
from torch.distributions import Normal, kl_divergence

from worldmodel import tree
from worldmodel.config import Run
from worldmodel.configs.quickstart import quickstart
from worldmodel.nn.decoders import PatchDecoderConfig
from worldmodel.nn.encoders import PatchEncoderConfig
from worldmodel.types import ArraySpec, Batch, EnvSpec, Prediction


@tree.struct
class MyState:
    """What the model knows; nobody else looks inside."""

    memory: Tensor
    """(..., D) of the GRU."""
    latent: Tensor
    """(..., Z) a sample."""


@dataclass(frozen=True, kw_only=True)
class MyModelConfig:
    """Every field is an option: ``--agent.model.memory 256``."""

    memory: int = 128
    """D, width of the GRU."""
    latent: int = 32
    """Z, Gaussian numbers."""
    units: int = 128
    """Width of the layers around it."""
    free_nats: float = 1.0
    """KL below this exerts no pull."""
    prior_scale: float = 1.0
    """Weight of KL[posterior || prior] as the prior's loss."""
    posterior_scale: float = 0.025
    """Weight of the same KL as the posterior's loss."""

    def __post_init__(self) -> None:
        if min(self.memory, self.latent, self.units) < 1:
            raise ValueError(f"widths must be at least 1, got {self.memory}, {self.latent}, {self.units}")

    def build(self, spec: EnvSpec) -> MyModel:
        return MyModel(self, spec)


class MyModel(nn.Module):
    """memory' = GRU(memory, latent, action); prior from memory'; posterior from (memory', picture)."""

    def __init__(self, config: MyModelConfig, spec: EnvSpec) -> None:
        super().__init__()
        c = self.config = config
        self.feature_dim = c.memory + c.latent
        self.loss_scales = {
            "observation": 1.0, "prior": c.prior_scale, "posterior": c.posterior_scale, "reward": 1.0, "continue": 1.0,
        }
        # networks of worldmodel's for every kind of observation; your own would do as well
        self.encoder = PatchEncoderConfig(patch=4, width=16, units=c.units).build(spec.obs)
        self.decoder = PatchDecoderConfig(patch=4, width=16, units=c.units).build(spec.obs, c.memory, c.latent)
        self.enter = _mlp(c.latent + spec.action.size, c.units, c.units)
        self.gru = nn.GRUCell(c.units, c.memory)
        self.prior = _mlp(c.memory, c.units, 2 * c.latent)
        self.posterior = _mlp(c.memory + int(self.encoder.out_dim), c.units, 2 * c.latent)
        self.reward = _mlp(self.feature_dim, c.units, 1)
        self.continues = _mlp(self.feature_dim, c.units, 1)

    # The recurrence

    def initial(self, batch_size: int) -> MyState:
        like = self.gru.weight_hh  # of the right type, on the right device
        return MyState(
            memory=like.new_zeros(batch_size, self.config.memory), latent=like.new_zeros(batch_size, self.config.latent)
        )

    def observe(self, state: MyState, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> MyState:
        return self._filter(state, obs, prev_action, is_first)[0]

    def step(self, state: MyState, action: Tensor) -> MyState:
        memory = self._recur(state, action)
        return MyState(memory=memory, latent=_sample(self.prior(memory)))

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
            "prior": _kl(posterior.detach(), prior).clamp(min=self.config.free_nats),
            "posterior": _kl(posterior, prior.detach()).clamp(min=self.config.free_nats),
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
        sizes = {"memory": self.config.memory, "latent": self.config.latent}
        return {name: ArraySpec(shape=(size,), dtype="bfloat16") for name, size in sizes.items()}

    def pack(self, state: MyState) -> dict[str, Tensor]:
        return {name: getattr(state, name).detach().bfloat16() for name in ("memory", "latent")}

    def unpack(self, memory: dict[str, Tensor]) -> MyState:
        return MyState(memory=memory["memory"].float(), latent=memory["latent"].float())

    # Inside

    def _filter(
        self, state: MyState, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor
    ) -> tuple[MyState, Tensor]:
        """States (B, T, ...) and the numbers (B, T, 2 Z) of their posteriors."""
        # (B, T, h, w, C) -> (B, T, E): what does not recur is computed for all steps at once
        tokens = self.encoder(obs)
        nothing = self.initial(is_first.shape[0])
        states, posteriors = [], []
        for t in range(is_first.shape[1]):
            # an episode that begins here knows nothing of the one before
            state = tree.where(is_first[:, t], nothing, state)
            memory = self._recur(state, prev_action[:, t] * (~is_first[:, t, None]))
            posterior = self.posterior(torch.cat([memory, tokens[:, t]], -1))
            state = MyState(memory=memory, latent=_sample(posterior))
            states.append(state)
            posteriors.append(posterior)
        return tree.stack(states, 1), torch.stack(posteriors, 1)

    def _recur(self, state: MyState, action: Tensor) -> Tensor:
        return self.gru(self.enter(torch.cat([state.latent, action], -1)), state.memory).float()


def _mlp(inputs: int, units: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units), nn.LayerNorm(units), nn.SiLU(), nn.Linear(units, outputs))


def _normal(numbers: Tensor) -> Normal:
    """(..., 2 Z) -> Z Gaussians with standard deviations above 0.1, in float32."""
    mean, std = numbers.float().chunk(2, -1)
    return Normal(mean, F.softplus(std) + 0.1, validate_args=False)


def _kl(posterior: Tensor, prior: Tensor) -> Tensor:
    """(..., 2 Z), (..., 2 Z) -> (...) nats."""
    return kl_divergence(_normal(posterior), _normal(prior)).sum(-1)


def _sample(numbers: Tensor) -> Tensor:
    """With gradient."""
    normal = _normal(numbers)
    return normal.mean + normal.stddev * torch.randn_like(normal.mean)


def run(task: str = "catch") -> Run:
    """Catch, Glide or Recall with this model."""
    base = quickstart(task)  # type: ignore[arg-type]
    return replace(base, agent=replace(base.agent, model=MyModelConfig()))
