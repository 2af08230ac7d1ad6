"""An ensemble that predicts one latent step: where its members were not trained alike, they disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import ranks
from worldmodel.errors import check_range
from worldmodel.nn.ensemble import EnsembleMLP
from worldmodel.types import Batch

LOG_STD = (-5.0, 2.0)
"""Where members that know their own noise keep its logarithm."""


@dataclass(frozen=True, kw_only=True)
class DisagreementConfig:
    """Heads that predict the next latent from features and an action. Defaults: COPlanner on DreamerV3 (Wang et al.
    2024), which are those of Plan2Explore in DreamerV3's code; but for ``scale``, which there is "raw"."""

    members: int = 8
    units: int = 1024
    """Width of each head."""
    layers: int = 5
    """Hidden layers of each head."""
    target: Literal["stoch", "deter", "token"] = "stoch"
    """What of the next step is predicted: its stochastic latent, its deterministic state, or the encoder's token of its
    observation (Sekar et al. 2020). One-hot latents saturate: where nothing is known, members come to predict the same
    mean."""
    form: Literal["mean", "sample"] = "mean"
    """"mean": the spread of what members expect, trained by squared error. "sample": members are Gaussians, trained by
    likelihood, and the spread is that of one sample of each, which holds the world's noise as well as ignorance."""
    scale: Literal["running", "raw"] = "running"
    """In units of its own running standard deviation over replay, so that a weight means the same in every model; or as
    it is (the authors)."""
    rate: float = 0.01
    """Rate of these running statistics."""
    loss_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError(f"it takes at least 2 members to disagree, got {self.members}")
        check_range(self, 1, "units")
        check_range(self, 0, "layers", "loss_scale")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {self.rate}")

    def build(self, inputs: int, outputs: int) -> Disagreement:
        return Disagreement(self, inputs, outputs)


class Disagreement(nn.Module):
    """u(s, a) = mean over the target's numbers of the standard deviation over members (Plan2Explore, eq. 1; COPlanner).

    Members differ by their first weights alone: all of them see every step.
    """

    moments: Tensor

    def __init__(self, config: DisagreementConfig, inputs: int, outputs: int) -> None:
        """Args: inputs: features and action together. outputs: size of the target."""
        super().__init__()
        self.config = config
        width = outputs * (2 if config.form == "sample" else 1)
        self.heads = EnsembleMLP(
            config.members, inputs, width, units=(config.units,) * config.layers, norm="layer", activation="silu"
        )
        # running weight, mean and mean square: nothing is known yet
        self.register_buffer("moments", torch.zeros(3))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """(..., F), (..., A) -> (...) float32, not negative."""
        spread = self._spread(self._predict(features, action))
        return spread / self.unit() if self.config.scale == "running" else spread

    def loss(self, features: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """(B, T, F), (B, T, D) -> (B, T): how far members are from what came, mean over members and numbers; 0 where a
        step has none before it. Neither features nor target get gradient. Takes the batch into the running
        statistics."""
        predicted = self._predict(features[:, :-1].detach(), batch.prev_action[:, 1:])
        target = target[:, 1:].detach().float()
        if self.config.form == "sample":
            mean, log_std = self._gaussian(predicted)
            error = 0.5 * ((target - mean) / log_std.exp()).square() + log_std
        else:
            error = (target - predicted).square()
        keep = (~batch.is_first[:, 1:]).float()
        self._track(self._spread(predicted.detach()), keep)
        return F.pad(error.mean((0, -1)) * keep, (1, 0))

    def unit(self) -> Tensor:
        """() what "running" divides by: the standard deviation so far, 1 before anything was seen."""
        weight, mean, square = self.moments.unbind()
        seen = weight.clamp(min=1e-8)
        std = (square / seen - (mean / seen).square()).clamp(min=0).sqrt()
        return torch.where(weight > 0, std.clamp(min=1e-6), 1.0)

    def _predict(self, features: Tensor, action: Tensor) -> Tensor:
        """(E, ..., width) float32."""
        # actions of unbounded policies are scaled back into [-1, 1], as cores do
        action = action / action.abs().clamp(min=1.0).detach()
        return self.heads(torch.cat([features, action], -1)).float()

    def _spread(self, predicted: Tensor) -> Tensor:
        """(E, ..., width) -> (...)."""
        if self.config.form == "sample":
            mean, log_std = self._gaussian(predicted)
            predicted = mean + log_std.exp() * torch.randn_like(mean)
        return predicted.std(0, correction=0).mean(-1)

    @staticmethod
    def _gaussian(predicted: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = predicted.chunk(2, -1)
        low, high = LOG_STD
        return mean, low + (high - low) * torch.sigmoid(raw)

    @torch.no_grad()
    def _track(self, spread: Tensor, keep: Tensor) -> None:
        """Take (B, T-1) into the running statistics; what is not finite changes nothing."""
        rows = torch.stack([keep.sum(), (keep * spread).sum(), (keep * spread.square()).sum()])
        weight, first, second = ranks.rows(rows.unsqueeze(0)).sum(0).unbind()
        seen = weight.clamp(min=1)
        now = torch.stack([torch.ones_like(weight), first / seen, second / seen])
        usable = torch.isfinite(now).all() & (weight > 0)
        self.moments.copy_(torch.where(usable, torch.lerp(self.moments, now, self.config.rate), self.moments))
