"""The implicit world model of TD-MPC2: a latent that predicts itself, rewards and ends, and draws nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.distributions import Plain, Space, SymlogTwoHot, TwoHot, scalar, spaced_bins
from worldmodel.errors import MisfitError, check_range
from worldmodel.nn.normed import (
    Activation,
    Init,
    Norm,
    NormedEncoderConfig,
    NormedLinear,
    NormedMLP,
    NormedTrunk,
    SimNorm,
    plain_linear,
    shifted,
)
from worldmodel.nn.slow import follow_
from worldmodel.tree import struct
from worldmodel.types import ArraySpec, Batch, EnvSpec, Prediction


@struct
class Latent:
    """A point of the latent space; nothing else is remembered, so the present observation decides it."""

    z: Tensor
    """(..., D); where there are several tasks, what is known of the task comes after it: its embedding (E), which
    numbers of an action it takes (A), and its index."""


@struct
class Unrolled:
    """What a batch of sequences gives when the model follows their actions from their first observation."""

    states: Latent
    """(B, T, D) imagined, with gradient through time; where an episode begins, encoded anew."""
    predicted: Latent
    """(B, T-1, D) what step t leads to, episodes notwithstanding."""
    encoded: Latent
    """(B, T-1, D) what was seen there, a constant."""
    aims: Latent
    """(B, T-1, D) what ``predicted`` is to be: that, or what the slow encoder makes of it."""


@dataclass(frozen=True, kw_only=True)
class ImplicitModelConfig:
    """TD-MPC2 (Hansen et al. 2024); the defaults are its 5M, but for images at rest where nothing is learned."""

    encoder: Any = field(default_factory=NormedEncoderConfig)
    """``build(obs specs) -> module`` with ``out_dim``; a layer to the latent follows it."""
    project: Literal["linear", "none"] = "linear"
    """That layer: linear with LayerNorm, or nothing, where what is encoded has the latent's width (TD-MPC2 from 64 x 64
    pixels)."""
    latent: int = 512
    """D."""
    form: Literal["simplex", "sigmoid", "free"] = "simplex"
    """What a latent may be: points of simplices (TD-MPC2), numbers in (0, 1) after a LayerNorm (FOWM), or anything
    (TD-MPC, TCRL)."""
    simplex: int = 8
    """V, the size of the groups that are normalised to simplices."""
    units: int = 512
    """Width of the dynamics and of the heads."""
    layers: int = 2
    activation: Activation = "mish"
    norm: Norm = "layer"
    """Which of their hidden layers are normalised."""
    init: Init = "normal"
    """Of dynamics, heads, and the layer to the latent."""
    out_scale: float = 0.0
    """What the initial weights of the reward's last layer are multiplied by."""
    bins: int = 101
    limit: float = 10.0
    """Bins of the reward lie in [-limit, limit] in symlog space."""
    space: Space = "symlog"
    """Where the mean of a reward is taken: of logarithms (TD-MPC2), or of values (DreamerV3), which is not biased;
    "plain" without bins, by squared errors (TD-MPC)."""
    ends: Literal["predicted", "never"] = "predicted"
    """Whether there is a head for terminations; "never" for tasks without any."""
    shift: int = 3
    """Pixels by which images are shifted at random; 0: not."""
    shifts: Literal["learning", "always"] = "learning"
    """Always is TD-MPC2: when it acts and plans too."""
    rho: float = 0.5
    """Weight of losses one step further ahead."""
    consistency: Literal["squared", "cosine"] = "squared"
    """How far the predicted latent is from what is seen: the mean of squares, or 2 - 2 cos (TCRL)."""
    task: int = 96
    """E, numbers that tell tasks apart, of norm 1 at most, where there are several (TD-MPC2)."""
    aim: Literal["fast", "slow"] = "fast"
    """What is seen there: by the encoder as it is (TD-MPC2), or by a copy that follows slowly (TD-MPC, TCRL)."""
    rate: float = 0.01
    """Share of the encoder's weights that this copy takes over."""
    consistency_scale: float = 20.0
    reward_scale: float = 0.1
    end_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.form == "simplex" and self.latent % self.simplex:
            raise ValueError(f"latent must be a multiple of simplex, got {self.latent} and {self.simplex}")
        if self.form != "simplex" and self.project == "none":
            raise ValueError(f"project='none' is for form='simplex' alone, got {self.form!r}; take project='linear'")
        check_range(self, 0, "rho", "rate", high=1)
        check_range(self, 0, "shift", "layers", "limit", "consistency_scale", "reward_scale", "end_scale", "out_scale")

    def build(self, spec: EnvSpec) -> ImplicitModel:
        return ImplicitModel(self, spec)


class ImplicitModel(nn.Module):
    """Implements ``WorldModel[Latent]``.

    Sequences may cross episodes: where one begins, the imagined latent is replaced by what is seen there, and the step
    that led over the border weighs nothing.
    """

    bins: Tensor
    takes: Tensor
    """(K, A) 1 where task k takes a number of an action."""

    def __init__(self, config: ImplicitModelConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.config = config
        self.image_keys = [key for key, array in spec.obs.items() if array.is_image]
        self.tasks: nn.Embedding | None = None
        known, obs = 0, spec.obs
        if spec.tasks:
            self.tasks = nn.Embedding(len(spec.tasks), config.task)
            nn.init.uniform_(self.tasks.weight, -0.02, 0.02)
            known, obs = config.task, obs | {"task": ArraySpec(shape=(config.task,), dtype="float32")}
        sizes = torch.tensor([task.action for task in spec.tasks], dtype=torch.int64)
        takes = torch.arange(spec.action.size) < sizes.unsqueeze(-1)
        self.register_buffer("takes", takes.float(), persistent=False)
        self.feature_dim = config.latent + known + (spec.action.size if spec.tasks else 0)
        self.encoder = config.encoder.build(obs)
        width = self.encoder.out_dim
        if config.project == "none" and width != config.latent:
            raise MisfitError(
                f"project='none' needs an encoder as wide as the latent, got {width} and {config.latent}; take "
                f"project='linear'"
            )
        self.register_buffer("bins", spaced_bins(config.bins, config.limit, config.space), persistent=False)
        self.project = SimNorm(config.simplex) if config.project == "none" else self._to_latent(width)
        self._told = config.latent + known
        told = self._told + spec.action.size
        units, layers = config.units, config.layers
        kind: dict[str, Any] = {"activation": config.activation, "norm": config.norm, "init": config.init}
        trunk = NormedTrunk(told, units, layers, **kind)
        self.dynamics = nn.Sequential(*trunk, self._to_latent(trunk.out_dim))
        self.reward = NormedMLP(told, units, layers, len(self.bins), out_scale=config.out_scale, **kind)
        self.ends: NormedMLP | None = None
        if config.ends == "predicted":
            self.ends = NormedMLP(self._told, units, layers, 1, **kind)
        self.slow: nn.Sequential | None = None
        if config.aim == "slow":
            self.slow = copy.deepcopy(nn.Sequential(self.encoder, self.project)).requires_grad_(False)
        self.loss_scales = {"consistency": config.consistency_scale, "reward": config.reward_scale}
        if self.ends is not None:
            self.loss_scales["end"] = config.end_scale

    def _to_latent(self, width: int) -> nn.Module:
        """The layer that makes a latent of (..., width)."""
        c = self.config
        if c.form == "free":
            return plain_linear(width, c.latent, init=c.init)
        return NormedLinear(width, c.latent, SimNorm(c.simplex) if c.form == "simplex" else torch.sigmoid, init=c.init)

    def initial(self, batch_size: int) -> Latent:
        middle = {"simplex": 1.0 / self.config.simplex, "sigmoid": 0.5, "free": 0.0}[self.config.form]
        z = self.bins.new_full((batch_size, self.config.latent), middle)
        return Latent(z=z if self.tasks is None else F.pad(z, (0, self.feature_dim + 1 - self.config.latent)))

    def observe(self, state: Latent, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> Latent:
        """(B, T, ...) -> (B, T, D): every observation stands for itself."""
        return Latent(z=self.encode(obs, shift=self.config.shifts == "always"))

    def encode(self, obs: dict[str, Tensor], *, shift: bool) -> Tensor:
        """(..., *shape) -> (..., D), or with what is known of the task."""
        obs = self._shifted(obs) if shift else obs
        if self.tasks is None:
            return self.project(self.encoder(obs))
        index = obs["task"]
        known = self.tasks(index)
        z = self.project(self.encoder(obs | {"task": known}))
        return torch.cat([z, known, self.takes[index], index.unsqueeze(-1)], -1)

    def _shifted(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images moved by chance, every one by its own."""
        if self.config.shift:
            for key in self.image_keys:
                x = obs[key]
                obs = obs | {key: shifted(x.reshape(-1, *x.shape[-3:]), self.config.shift).view(x.shape)}
        return obs

    def step(self, state: Latent, action: Tensor) -> Latent:
        z = self.dynamics(self._asked(state, action))
        return Latent(z=z if self.tasks is None else torch.cat([z, state.z[..., self.config.latent :]], -1))

    def _asked(self, state: Latent, action: Tensor) -> Tensor:
        """(..., I) what dynamics and reward are told."""
        return torch.cat([state.z[..., : self._told], self.allowed(state, action)], -1)

    def allowed(self, state: Latent, action: Tensor) -> Tensor:
        """(..., A) the action, 0 where the task takes none."""
        return action if self.tasks is None else action * self.takes[self.task_of(state)]

    def task_of(self, state: Latent) -> Tensor:
        """(...) int64 the index of the task, where there are several."""
        return state.z[..., -1].long()

    def predict(self, previous: Latent, action: Tensor, state: Latent) -> Prediction:
        """The reward of the state left and the action, the continuation of the state arrived in."""
        reward = self.reward_of(previous, action).mean()
        if self.ends is None:
            return Prediction(reward=reward, continues=torch.ones_like(reward))
        return Prediction(reward=reward, continues=torch.sigmoid(-self.end_logit(state)))

    def reward_of(self, state: Latent, action: Tensor) -> TwoHot | SymlogTwoHot | Plain:
        """(...) the reward of an action."""
        return scalar(self.reward(self._asked(state, action)), self.bins, self.config.space)

    def end_logit(self, state: Latent) -> Tensor:
        """(...) float32, of being terminal."""
        assert self.ends is not None
        return self.ends(state.z[..., : self._told]).squeeze(-1).float()

    def features(self, state: Latent) -> Tensor:
        """(..., F) the latent; where there are several tasks, the embedding and what an action takes too."""
        return state.z if self.tasks is None else state.z[..., :-1]

    def loss(self, batch: Batch, state: Latent) -> tuple[dict[str, Tensor], Latent]:
        """Every loss (B, T), weighted by :meth:`step_weights`, so the last column is 0; imagined states."""
        unrolled = self.unroll(batch)
        return self.losses(batch, unrolled), unrolled.states

    def unroll(self, batch: Batch) -> Unrolled:
        """Follow the actions of (B, T) from the first observation."""
        # with gradient first: within one block of autocast, weights keep the cast of their first use
        z = self.encode({key: x[:, 0] for key, x in batch.obs.items()}, shift=True)
        with torch.no_grad():
            seen = self._shifted({key: x[:, 1:] for key, x in batch.obs.items()})
            encoded = self.encode(seen, shift=False)
            aims = encoded if self.slow is None else self._slowly(seen)
        states, predicted = [z], []
        for t in range(batch.reward.shape[1] - 1):
            z = self.step(Latent(z=z), batch.action[:, t]).z
            predicted.append(z)
            z = torch.where(batch.is_first[:, t + 1, None], encoded[:, t].to(z.dtype), z)
            states.append(z)
        return Unrolled(
            states=Latent(z=torch.stack(states, 1)),
            predicted=Latent(z=torch.stack(predicted, 1) if predicted else encoded),
            encoded=Latent(z=encoded),
            aims=Latent(z=aims),
        )

    def losses(self, batch: Batch, unrolled: Unrolled) -> dict[str, Tensor]:
        """Consistency, reward and end, (B, T) each (TD-MPC2, eq. 3 without the value's term)."""
        before = tree.index(unrolled.states, (slice(None), slice(None, -1)))
        gap = self._gap(unrolled.predicted.z, unrolled.aims.z)
        code = self.reward_of(before, batch.action[:, :-1]).loss(batch.reward[:, 1:])
        weight = self.step_weights(batch.is_first)
        losses = {"consistency": weight * padded(gap), "reward": weight * padded(code)}
        if self.ends is not None:
            target = batch.is_terminal[:, 1:].float()
            end = F.binary_cross_entropy_with_logits(self.end_logit(unrolled.predicted), target, reduction="none")
            losses["end"] = self.step_weights(batch.is_first, rho=1.0) * padded(end)
        return losses

    def _slowly(self, obs: dict[str, Tensor]) -> Tensor:
        """(..., *shape) -> (..., D) by the slow encoder."""
        assert self.slow is not None
        return self.slow(obs if self.tasks is None else obs | {"task": self.tasks(obs["task"])})

    def _gap(self, predicted: Tensor, aim: Tensor) -> Tensor:
        """(..., D) both, or with the task, -> (...)."""
        predicted, aim = (x[..., : self.config.latent] for x in (predicted, aim))
        if self.config.consistency == "cosine":
            return 2 - 2 * F.cosine_similarity(predicted.float(), aim.float(), dim=-1)
        return F.mse_loss(predicted, aim, reduction="none").float().mean(-1)

    @torch.no_grad()
    def bound(self) -> None:
        """Put embeddings of tasks back inside the unit ball, after an update."""
        if self.tasks is not None:
            weight = self.tasks.weight
            weight.mul_((1 / weight.norm(dim=-1, keepdim=True)).clamp(max=1.0))

    def track(self, healthy: Tensor) -> None:
        """Move the slow encoder, where there is one, after an update that was () ``healthy``."""
        if self.slow is not None:
            follow_(self.slow, nn.Sequential(self.encoder, self.project), self.config.rate, healthy)

    def step_weights(self, is_first: Tensor, rho: float | None = None) -> Tensor:
        """(B, T) whose product with (B, T) losses has the mean 1/H sum_t rho^t mean_b loss[b, t], H = T - 1, where the
        mean is that over rows whose step t + 1 does not begin an episode."""
        steps = is_first.shape[1] - 1
        inside = (~is_first[:, 1:]).float()
        share = inside / inside.mean(0).clamp(min=1.0 / len(is_first))
        power = torch.arange(steps, device=is_first.device)
        return padded(share * (self.config.rho if rho is None else rho) ** power * ((steps + 1) / max(1, steps)))


def padded(x: Tensor) -> Tensor:
    """(B, T-1) -> (B, T), the last column 0."""
    return F.pad(x, (0, 1))
