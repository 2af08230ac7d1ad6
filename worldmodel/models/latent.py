"""A latent world model: encoder + core + representation objective + reward and continuation heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from worldmodel import ranks
from worldmodel.errors import check_range
from worldmodel.kernels.unimix_categorical import balanced_kl
from worldmodel.models.cores.base import Core
from worldmodel.models.cores.rssm import RSSMConfig
from worldmodel.models.disagreement import Disagreement
from worldmodel.models.objectives.reconstruction import ReconstructionConfig
from worldmodel.nn.blocks import BatchNorm
from worldmodel.nn.decoders import ConvDecoderConfig
from worldmodel.nn.encoders import ConvEncoderConfig
from worldmodel.nn.heads import BernoulliHead, TwoHotHead
from worldmodel.protocols import Forks, Trims
from worldmodel.types import ArraySpec, Batch, EnvSpec, Prediction

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class LatentModelConfig:
    """Any core with any encoder, decoder and objective (DreamerV3's losses, dreamer eq. 4 and 5)."""

    encoder: Any = field(default_factory=ConvEncoderConfig)
    """``build(obs specs) -> module`` with ``out_dim``."""
    decoder: Any = field(default_factory=ConvDecoderConfig)
    """``build(obs specs, deter, stoch) -> Decoder``."""
    core: Any = field(default_factory=RSSMConfig)
    """``build(action_size, token_size) -> Core``."""
    objective: Any = field(default_factory=ReconstructionConfig)
    """``build(feature_dim, token_size, make_decoder) -> Objective``."""
    probe: bool = True
    """Where the objective has no decoder, train one on detached latents, so that dreams can be looked at."""
    units: int = 1024
    """Width of the heads."""
    heads: Literal["both", "deter"] = "both"
    """What the reward and continuation heads read: all features, or the deterministic state alone (STORM, Drama)."""
    behaviour: Literal["both", "deter", "stoch"] = "both"
    """What policies and values read."""
    reward_layers: int = 1
    continue_layers: int = 1
    continue_target: float = 1 - 1 / 333
    """What the continuation head learns of a step after which the episode goes on, in (0, 1]; DreamerV3's is its
    discount and not 1 (contdisc). :meth:`LatentWorldModel.predict` divides it out, so that the discount is decided by
    the agent's ``horizon`` alone, whatever stands here."""
    free_nats: float = 1.0
    """KL below this (summed over groups, dyn and rep apart) exerts no pull."""
    free_nats_on: Literal["element", "batch"] = "element"
    """Whether that holds of each step's KL (Dreamer), or of the mean over the batch (STORM, Drama)."""
    dyn_scale: float = 1.0
    """Weight of KL[sg(posterior) || prior]."""
    rep_scale: float = 0.1
    """Weight of KL[posterior || sg(prior)]."""
    reward_scale: float = 1.0
    continue_scale: float = 1.0
    disagreement: Any = None
    """``build(inputs, outputs) -> Disagreement``: an ensemble that says how unsure the model is, with a loss of its own
    that reaches nothing else (``models/disagreement.py``). None: there is none."""

    def __post_init__(self) -> None:
        check_range(self, 1, "units")
        check_range(self, 0, "reward_layers", "continue_layers", "free_nats")
        if not 0 < self.continue_target <= 1:
            raise ValueError(f"continue_target must be in (0, 1], got {self.continue_target}")

    def build(self, spec: EnvSpec) -> LatentWorldModel[Any]:
        return LatentWorldModel(self, spec) if self.disagreement is None else UncertainLatentModel(self, spec)


class LatentWorldModel(nn.Module, Generic[S]):
    """Implements ``WorldModel[S]``, ``Decodes`` and ``Remembers`` for any core, and ``Forks`` where the core does."""

    def __init__(self, config: LatentModelConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build(spec.obs)
        self.core: Core[S] = config.core.build(spec.action.size, self.encoder.out_dim)
        if isinstance(self.core, Forks):
            # of the instance: a method of the class would promise it for every core
            self.fork = self.core.fork
        self.feature_dim = self._width(config.behaviour)

        def make_decoder() -> Any:
            return config.decoder.build(spec.obs, self.core.deter_size, self.core.stoch_size)

        self.objective = config.objective.build(self.core.feature_dim, self.encoder.out_dim, make_decoder)
        self.probe = make_decoder() if config.probe and not self.objective.decodes else None
        self.reward = TwoHotHead(self._width(config.heads), config.units, config.reward_layers)
        self.continues = BernoulliHead(self._width(config.heads), config.units, config.continue_layers)
        self.loss_scales: dict[str, float] = {
            **self.objective.scales,
            **({"probe": 1.0} if self.probe is not None else {}),
            "reward": config.reward_scale,
            "continue": config.continue_scale,
            "dyn": config.dyn_scale,
            "rep": config.rep_scale,
        }
        self.ensemble: Disagreement | None = None
        if config.disagreement is not None:
            sizes = {"stoch": self.core.stoch_size, "deter": self.core.deter_size, "token": self.encoder.out_dim}
            self.ensemble = config.disagreement.build(
                self.core.feature_dim + spec.action.size, sizes[config.disagreement.target]
            )
            self.loss_scales["disagreement"] = config.disagreement.loss_scale
        # batch statistics and dropout belong to learning from sequences, not to acting and dreaming
        self._has_modes = any(isinstance(m, BatchNorm) or (isinstance(m, nn.Dropout) and m.p) for m in self.modules())
        self.eval()

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        return self.core.memory_spec

    def initial(self, batch_size: int) -> S:
        return self.core.initial(batch_size)

    def observe(self, state: S, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> S:
        """(B, ...), (B, T, ...) -> (B, T, ...)."""
        return self.core.observe(state, self.encoder(obs), prev_action, is_first).states

    def step(self, state: S, action: Tensor) -> S:
        return self.core.step(state, action)

    def predict(self, previous: S, action: Tensor, state: S) -> Prediction:
        """Reward and continuation are read off the state arrived in."""
        features = self._read(self.core.features(state), self.config.heads)
        # The seam speaks of probabilities. Not clamped to 1: an agent whose discount is what the head was trained on
        # gets the head's own number, by which DreamerV3 weights dreams.
        continues = torch.sigmoid(self.continues(features)) / self.config.continue_target
        return Prediction(reward=self.reward(features).mean(), continues=continues)

    def features(self, state: S) -> Tensor:
        return self._read(self.core.features(state), self.config.behaviour)

    def trim(self, state: S) -> S:
        return self.core.trim(state) if isinstance(self.core, Trims) else state

    def decode(self, state: S) -> dict[str, Tensor]:
        """Image keys, (..., h, w, C) in [0, 1]; empty where nothing decodes."""
        decoder = self.objective.decoder if self.objective.decodes else self.probe
        if decoder is None:
            return {}
        out = decoder(self.core.features(state))
        return {key: out[key] for key in decoder.image_keys}

    def pack(self, state: S) -> dict[str, Tensor]:
        return self.core.pack(state)

    def unpack(self, memory: dict[str, Tensor]) -> S:
        return self.core.unpack(memory)

    def loss(self, batch: Batch, state: S) -> tuple[dict[str, Tensor], S]:
        """Every loss (B, T), unscaled; posterior states (B, T, ...) with gradient."""
        if self._has_modes:
            self.train()
        tokens = self.encoder(batch.obs)
        out = self.core.observe(state, tokens, batch.prev_action, batch.is_first)
        features = self.core.features(out.states)
        losses = self.objective(features, tokens, batch)
        if self.probe is not None:
            losses["probe"] = self.probe.loss(features.detach(), batch.obs)
        read = self._read(features, self.config.heads)
        losses["reward"] = self.reward(read).loss(batch.reward)
        target = (~batch.is_terminal).float() * self.config.continue_target
        losses["continue"] = BernoulliHead.loss(self.continues(read), target)
        losses["dyn"], losses["rep"] = self._divergences(out.posterior, out.prior)
        if self.ensemble is not None:
            part = self.ensemble.config.target
            target = tokens if part == "token" else self._read(features, part)
            losses["disagreement"] = self.ensemble.loss(features, target, batch)
        if self._has_modes:
            self.eval()
        return losses, out.states

    def _divergences(self, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """KL both ways (B, T), with free nats; of the batch, where these are the batch's, each step keeps its share."""
        c = self.config
        alone = c.free_nats_on == "element"
        dyn, rep = balanced_kl(
            posterior, prior, unimix=self.core.config.unimix, free_nats=c.free_nats if alone else 0.0
        )
        return (dyn, rep) if alone else (free_on_mean(dyn, c.free_nats), free_on_mean(rep, c.free_nats))

    def _width(self, part: Literal["both", "deter", "stoch"]) -> int:
        return {"both": self.core.feature_dim, "deter": self.core.deter_size, "stoch": self.core.stoch_size}[part]

    def _read(self, features: Tensor, part: Literal["both", "deter", "stoch"]) -> Tensor:
        """(..., D + S) to the part of it, deter first."""
        if part == "both":
            return features
        return features[..., : self.core.deter_size] if part == "deter" else features[..., self.core.deter_size :]


class UncertainLatentModel(LatentWorldModel[S]):
    """One that carries an ensemble, and so has the ability ``Uncertain``."""

    def disagreement(self, state: S, action: Tensor) -> Tensor:
        """(...) how unsure the model is of what follows, over any leading axes."""
        assert self.ensemble is not None
        return self.ensemble(self.core.features(state), action)


def free_on_mean(kl: Tensor, free_nats: float) -> Tensor:
    """(B, T) whose mean is max(free_nats, mean of ``kl``), with that maximum's gradient (STORM, eq. 6).

    Below the floor there is no gradient, and every entry keeps its distance from the mean.
    """
    mean = ranks.rows(kl.detach().mean().unsqueeze(0)).mean()
    return torch.where(mean > free_nats, kl, (kl - mean).detach() + free_nats)
