"""The policy prior of TD-MPC2: what planning begins with, and what it bootstraps from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel import ranks
from worldmodel.distributions import Categorical, ClampedNormal, NoisedMode, SquashedNormal, log_slope
from worldmodel.errors import MisfitError, check_range
from worldmodel.nn.normed import Activation, Init, Norm, NormedMLP
from worldmodel.types import ActionSpec


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """A normal for continuous actions, a categorical for discrete ones; the defaults are TD-MPC2's 5M."""

    units: int = 512
    layers: int = 2
    activation: Activation = "mish"
    norm: Norm = "layer"
    init: Init = "normal"
    form: Literal["squashed", "clamped", "noised"] = "squashed"
    """How the normal keeps to the bounds: by a tanh of its samples, or by one of its mean and cutting samples off
    (BMPC, with log-stds in [-3, 1]), its spread learned or, "noised", given (TD-MPC, TCRL)."""
    noise: float = 0.05
    """Standard deviation of "noised"."""
    reach: float = 0.3
    """Where noise is cut off, but for what explores."""
    min_log_std: float = -10.0
    max_log_std: float = 2.0
    unimix: float = 0.01
    """Share of the uniform distribution in discrete policies."""
    entropy: Literal["squashed", "scaled"] = "squashed"
    """What the bonus counts: the entropy of actions, or, as TD-MPC2's code does, that of what they were before the
    tanh, times the number of dimensions. Its formula -log p (A log p0 / log p) is -A log p0: the correction for the
    tanh cancels."""
    bonus: float = 1e-4
    """Weight of the entropy beside values in units of their spread."""

    def __post_init__(self) -> None:
        if not self.min_log_std < self.max_log_std:
            raise ValueError(f"need min_log_std < max_log_std, got {self.min_log_std} and {self.max_log_std}")
        check_range(self, 0, "reach", "bonus")
        if not self.noise > 0:
            raise ValueError(f"noise must be positive, got {self.noise}")

    def build(self, feature_dim: int, action: ActionSpec, *, masked: bool = False) -> Prior:
        """Args: masked: the last numbers of features say which numbers of an action there are."""
        if masked and self.form != "squashed":
            raise MisfitError(f"several tasks need policy.form='squashed', got {self.form!r}")
        return Prior(self, feature_dim, action, masked)


class Prior(nn.Module):
    """features -> distribution of actions."""

    noise: Tensor
    """() the standard deviation of "noised", which its owner may change."""

    def __init__(self, config: PriorConfig, feature_dim: int, action: ActionSpec, masked: bool = False) -> None:
        super().__init__()
        self.config, self.action, self.masked = config, action, masked
        alone = action.kind == "discrete" or config.form == "noised"
        outputs = action.size * (1 if alone else 2)
        self.net = NormedMLP(
            feature_dim - (action.size if masked else 0), config.units, config.layers, outputs,
            activation=config.activation, norm=config.norm, init=config.init,
        )
        self.register_buffer("noise", torch.tensor(config.noise), persistent=False)

    def forward(self, features: Tensor) -> SquashedNormal | ClampedNormal | NoisedMode | Categorical:
        """(..., F) -> distribution over (..., A)."""
        c, counts = self.config, None
        if self.masked:
            features, counts = features[..., : -self.action.size], features[..., -self.action.size :]
        out = self.net(features)
        if self.action.kind == "discrete":
            return Categorical(out, c.unimix)
        if c.form == "noised":
            return NoisedMode(out, self.noise, c.reach)
        mean, raw = out.float().chunk(2, -1)
        log_std = c.min_log_std + 0.5 * (c.max_log_std - c.min_log_std) * (torch.tanh(raw) + 1)
        return SquashedNormal(mean, log_std, counts) if c.form == "squashed" else ClampedNormal(mean, log_std)

    def judged(self, q: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the policy's actions are worth, with gradient to the policy, and their entropy, (...) both.

        Args: q: (..., F), (..., A) -> (...). Continuous actions are sampled, discrete ones summed over.
        """
        policy = self(features)
        if isinstance(policy, Categorical):
            # (A, ..., A): every action in every state
            shape = (self.action.size, *features.shape[:-1])
            every = torch.eye(self.action.size, device=features.device).view(-1, *[1] * len(shape[1:]), shape[0])
            worth = q(features.expand(*shape, -1), every.expand(*shape, -1)).detach()
            return (policy.probs * worth.movedim(0, -1)).sum(-1), policy.entropy()
        if isinstance(policy, (ClampedNormal, NoisedMode)):
            return q(features, policy.sample()), policy.entropy()
        u, before = policy.draw()
        size = self.action.size if policy.counts is None else policy.counts.sum(-1)
        entropy = -before * size if self.config.entropy == "scaled" else log_slope(u) - before
        return q(features, torch.tanh(u)), entropy

    def explored(self, features: Tensor) -> Tensor:
        """(..., A) what collects where the policy acts."""
        policy = self(features)
        return policy.explore() if isinstance(policy, NoisedMode) else policy.sample()

    def taught(self, features: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
        """How far the policy is from what planning found, and its entropy, (...) both (BMPC, eq. 8).

        Args: expert: (..., E) of :meth:`expert_size`; zeros where nothing was planned, which stands for chance.
        """
        policy = self(features)
        if isinstance(policy, Categorical):
            chance = torch.full_like(expert, 1 / expert.shape[-1])
            found = torch.where(expert.sum(-1, keepdim=True) > 0, expert, chance)
            return -(found * policy.log_probs).sum(-1), policy.entropy()
        assert isinstance(policy, ClampedNormal)
        mean, std = expert.chunk(2, -1)
        return policy.kl(mean, torch.where(std > 0, std, 1.0)).mean(-1), policy.entropy()

    def cloned(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """How unlikely the policy finds an action, and its entropy, (...) both; of given noise half the squared
        distance, which is that but for a constant where the noise is 1 (FOWM)."""
        policy = self(features)
        if isinstance(policy, NoisedMode):
            return 0.5 * (policy.mode() - action).square().sum(-1), policy.entropy()
        return -policy.log_prob(action), policy.entropy()

    @property
    def expert_size(self) -> int:
        """E: mean and standard deviation of an action, or the probability of each choice."""
        return self.action.size if self.action.kind == "discrete" else 2 * self.action.size


class Spread(nn.Module):
    """A running scale of values: the range between the 5th and the 95th percentile of a batch, at least 1."""

    scale: Tensor
    quantiles: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("quantiles", torch.tensor((0.05, 0.95)), persistent=False)

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """Take in values of any shape and give the scale; values that are not finite change nothing."""
        low, high = torch.quantile(ranks.rows(values.detach().float().flatten()), self.quantiles).unbind()
        width = (high - low).clamp(min=1.0)
        self.scale.copy_(torch.where(width.isfinite(), torch.lerp(self.scale, width, self.rate), self.scale))
        return self.scale
