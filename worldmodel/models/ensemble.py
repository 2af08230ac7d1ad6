"""Dynamics of observed vectors as an ensemble of Gaussians (PETS, Chua et al. 2018; MBPO, Janner et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import MisfitError, UserError, check_range
from worldmodel.models.heuristics import HEURISTICS
from worldmodel.models.termination import TERMINATIONS
from worldmodel.nn.ensemble import EnsembleLinear, EnsembleMLP
from worldmodel.nn.normed import Standardise
from worldmodel.nn.optim import Adam
from worldmodel.tree import struct
from worldmodel.types import Batch, EnvSpec, Prediction, Transitions

Heuristic = Literal[
    "max_aleatoric", "max_pairwise", "likelihood_variance", "ensemble_std", "ensemble_variance", "mean_std",
    "average_std", "leave_one_out",
]
Ends = Literal["never", "hopper", "walker2d", "ant", "humanoid", "inverted_pendulum", "inverted_double_pendulum"]

@struct
class Observed:
    """An observation, and what was said on arriving at it."""

    x: Tensor
    """(..., n)."""
    reward: Tensor
    """(...)."""


@dataclass(frozen=True, kw_only=True)
class EnsembleModelConfig:
    """Seven networks for the next observation and the reward, the best five of which are used; the defaults
    are MBPO's and MOPO's."""

    members: int = 7
    elites: int = 5
    """Members that predict: the best on held-out data."""
    units: tuple[int, ...] = (200, 200, 200, 200)
    activation: Literal["silu", "relu", "tanh", "elu", "mish"] = "silu"
    decays: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    """Weight of half the squared weights, layer by layer; the last one holds for further layers, () for none."""
    bounds: tuple[float, float] = (-10.0, 0.5)
    """Soft limits of log-variances, in the unit of ``targets``, where learning begins; they are learned."""
    bounds_scale: float = 0.01
    """What pulls the limits together."""
    lr: float = 1e-3
    batch_size: int = 256
    """Rows of each member in a step."""
    patience: int = 5
    """Rounds without a member that improves by ``gain`` on held-out data, after which fitting ends."""
    gain: float = 0.01
    max_rounds: int = 2000
    """Of one fit, over all data each."""
    uncertainty: Heuristic = "mean_std"
    """What ``disagreement`` is, see worldmodel/models/heuristics.py."""
    ends: Ends = "never"
    """Which states end an episode, see worldmodel/models/termination.py."""
    predicts: Literal["change", "next"] = "change"
    """What networks say of the next observation: how it differs from this one, or what it is (Barkley and
    Fridovich-Keil 2025)."""
    targets: Literal["raw", "standard"] = "raw"
    """What these numbers and the reward are learned in: as they are, or each less its mean, by its standard deviation,
    so that large ones don't drown small ones (the same paper). Measured by ``fit`` alone. What the model says, and its
    doubt, are in the numbers' own units either way."""
    noise: Literal["sampled", "mean"] = "sampled"
    """Whether a step draws from the member's Gaussian or takes its mean."""

    def __post_init__(self) -> None:
        check_range(self, 1, "members", "batch_size", "patience", "max_rounds")
        check_range(self, 0, "lr", "gain", "bounds_scale")
        if not 1 <= self.elites <= self.members:
            raise ValueError(f"elites must be from 1 to members={self.members}, got {self.elites}")
        if self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"bounds must be (lower, upper) log-variances, got {self.bounds}")
        if self.predicts not in ("change", "next") or self.targets not in ("raw", "standard"):
            raise ValueError(
                f"predicts must be change or next, targets raw or standard, got {self.predicts!r} and {self.targets!r}"
            )
        if self.uncertainty not in HEURISTICS or self.ends not in TERMINATIONS:
            raise ValueError(f"uncertainty {self.uncertainty!r} or ends {self.ends!r} does not exist")

    def build(self, spec: EnvSpec) -> EnsembleModel:
        return EnsembleModel(self, spec)


class EnsembleModel(nn.Module):
    """Implements ``WorldModel[Observed]``, ``Uncertain``, ``Varies``, ``Likely`` and ``Fits``: the observation is the
    state."""

    elite: Tensor
    fitted: Tensor

    def __init__(self, config: EnsembleModelConfig, spec: EnvSpec) -> None:
        """Raises: MisfitError for observations that are not vectors."""
        super().__init__()
        self.config = config
        self.axes = vector_axes(spec)
        self.feature_dim = sum(math.prod(array.shape) for array in spec.obs.values())
        inputs = self.feature_dim + spec.action.size
        self.outputs = self.feature_dim + 1
        self.net = EnsembleMLP(
            config.members, inputs, 2 * self.outputs, units=config.units, norm="none", activation=config.activation,
            init=_init,
        )
        low, high = config.bounds
        # of every member its own, so that they are kept with its weights at its best
        self.lower = nn.Parameter(torch.full((config.members, self.outputs), low))
        self.upper = nn.Parameter(torch.full((config.members, self.outputs), high))
        self.inputs = Standardise(inputs)
        self.targets = Standardise(self.outputs) if config.targets == "standard" else None
        if config.predicts == "next":  # so that weights which mean something else are not taken for these
            self.register_buffer("predicts_next", torch.ones(()))
        self.register_buffer("elite", torch.arange(config.elites))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))
        self.ends = TERMINATIONS[config.ends]
        self.loss_scales: dict[str, float] = {"dynamics": 1.0}

    # The seam

    def initial(self, batch_size: int) -> Observed:
        return Observed(
            x=torch.zeros(batch_size, self.feature_dim, device=self.elite.device),
            reward=torch.zeros(batch_size, device=self.elite.device),
        )

    def observe(self, state: Observed, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> Observed:
        """(B, T, n): the observation is the state."""
        x = self.read(obs)
        return Observed(x=x, reward=x.new_zeros(x.shape[:-1]))

    def read(self, obs: dict[str, Tensor]) -> Tensor:
        """All numbers observed, side by side, float32."""
        return read_vectors(obs, self.axes)

    def step(self, state: Observed, action: Tensor) -> Observed:
        """(B, n) and (B, A): each row asks one elite, drawn anew."""
        mean, log_var = self.gaussians(state.x, action, self.elite)
        pick = torch.randint(len(mean), mean.shape[1:-1], device=mean.device)
        at = pick[None, ..., None].expand(1, *mean.shape[1:])
        chosen = mean.gather(0, at)[0]
        if self.config.noise == "sampled":
            chosen = chosen + (0.5 * log_var.gather(0, at)[0]).exp() * torch.randn_like(chosen)
        return Observed(x=state.x + chosen[..., :-1], reward=chosen[..., -1])

    def predict(self, previous: Observed, action: Tensor, state: Observed) -> Prediction:
        """The reward that the step said, and whether the state arrived in ends the episode."""
        return Prediction(reward=state.reward, continues=1.0 - self.ends(state.x).float())

    def features(self, state: Observed) -> Tensor:
        return state.x

    def loss(self, batch: Batch, state: Observed) -> tuple[dict[str, Tensor], Observed]:
        """"dynamics" (B, T): the mean of the members' negative log-likelihoods of arriving at each step; 0 where an
        episode or the sequence begins. For who learns the model in every update instead of by :meth:`fit`."""
        states = self.observe(state, batch.obs, batch.prev_action, batch.is_first)
        target = torch.cat([states.x[:, 1:] - states.x[:, :-1], batch.reward[:, 1:, None]], -1)
        mean, log_var = self.gaussians(states.x[:, :-1], batch.prev_action[:, 1:])
        nll = gaussian_loss(mean, log_var, target).mean(0) + self.pull() / max(1, target.shape[1])
        nll = F.pad(nll * (~batch.is_first[:, 1:]), (1, 0))
        return {"dynamics": nll}, states

    def disagreement(self, state: Observed, action: Tensor) -> Tensor:
        """(...) how unsure all members are, by the heuristic of the config."""
        mean, log_var = self.gaussians(state.x, action)
        return HEURISTICS[self.config.uncertainty](mean, (0.5 * log_var).exp())

    # The ensemble

    def gaussians(self, x: Tensor, action: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(..., n), (..., A) to mean and log-variance (E, ..., n+1) of change and reward."""
        mean, log_var = self._bounded(self.net(self._scaled(x, action), members), members)
        if self.targets is not None:
            mean = mean * self.targets.scale + self.targets.shift
            log_var = log_var + 2 * self.targets.scale.log()
        if self.config.predicts == "next":
            mean = mean - F.pad(x, (0, 1))
        return mean, log_var

    def outcomes(self, state: Observed, action: Tensor, count: int) -> Tensor:
        """(count, elites, ..., n) next observations drawn from every elite."""
        mean, log_var = (out[..., :-1] for out in self.gaussians(state.x, action, self.elite))
        return state.x + mean + (0.5 * log_var).exp() * torch.randn(count, *mean.shape, device=mean.device)

    def log_prob(self, state: Observed, action: Tensor, arrived: Observed) -> Tensor:
        """(...) log-density of what was arrived in, and its reward, in the mixture of the elites."""
        mean, log_var = self.gaussians(state.x, action, self.elite)
        came = torch.cat([arrived.x - state.x, arrived.reward.unsqueeze(-1)], -1)
        each = -0.5 * ((came - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(-1)
        # in logarithms throughout: densities of a dozen numbers are 0 in any float
        return each.logsumexp(0) - math.log(len(each))

    def misfit(self, data: Transitions, bounds_scale: float) -> Tensor:
        """() what fitting minimises, of the same (N, ...) for all members."""
        mean, log_var = self.gaussians(data.x, data.action)
        target = torch.cat([data.next_x - data.x, data.reward.unsqueeze(-1)], -1)
        return gaussian_loss(mean, log_var, target).mean(1).sum() + self._decay() + self.pull(bounds_scale)

    def pull(self, scale: float | None = None) -> Tensor:
        """() what keeps the limits of log-variances near the data, by ``scale`` or the config's; the mean of the
        members."""
        weight = self.config.bounds_scale if scale is None else scale
        return weight * (self.upper - self.lower).mean(0).sum()

    def fit(self, data: Transitions, holdout: Tensor) -> dict[str, Tensor]:
        """Standardise inputs, and targets where that is asked for, learn until no member gets better on held-out data,
        keep each at its best, choose elites.

        Args: data (N, ...) with observations as features; holdout (N,) bool.
        Returns: "holdout_mse" of the elites in the unit of ``config.targets``, "train_loss", "rounds".
        Raises: UserError without data on both sides, and where the ends in the data are not those of the config.
        """
        if not 0 < int(holdout.sum()) < len(holdout):
            raise UserError(f"{len(holdout)} transitions, {int(holdout.sum())} held out, are too few to fit dynamics")
        self.check_ends(data)
        inputs = torch.cat([data.x, data.action], -1)
        came = data.next_x - data.x if self.config.predicts == "change" else data.next_x
        target = torch.cat([came, data.reward.unsqueeze(-1)], -1)
        kept, held = ~holdout, holdout
        self.inputs.measure(inputs[kept])
        if self.targets is not None:
            self.targets.measure(target[kept])
            target = self.targets(target)
        found = self._rounds(self.inputs(inputs[kept]), target[kept], self.inputs(inputs[held]), target[held])
        self.fitted.add_(1)
        return found

    def _rounds(self, x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> dict[str, Tensor]:
        c, members, rows = self.config, self.config.members, len(x)
        mine = [*self.parameters()]
        optimizer = Adam([(mine, c.lr)])
        best = [p.detach().clone() for p in mine]
        lowest = torch.full((members,), float("inf"), device=x.device)
        bootstrap = torch.randint(rows, (members, rows), device=x.device)
        waited, rounds, loss = 0, 0, y.new_zeros(())
        while waited < c.patience and rounds < c.max_rounds:
            bootstrap = bootstrap.gather(1, torch.rand(members, rows, device=x.device).argsort(1))
            for at in range(0, rows, c.batch_size):
                chosen = bootstrap[:, at : at + c.batch_size]
                loss = self.update(optimizer, x[chosen], y[chosen])
            with torch.no_grad():
                mean = self._bounded(self.net(x_held))[0]
                mse = (mean - y_held).square().mean((1, 2))
                better = (lowest - mse) / lowest > c.gain
                better |= lowest.isinf() & mse.isfinite()
                lowest = torch.where(better, mse, lowest)
                for kept, now in zip(best, mine):
                    kept.copy_(torch.where(better.view(-1, *(1,) * (now.ndim - 1)), now, kept))
            rounds, waited = rounds + 1, 0 if bool(better.any()) else waited + 1
        with torch.no_grad():
            for kept, now in zip(best, mine):
                now.copy_(kept)
            self.elite.copy_(lowest.argsort()[: c.elites])
        return {
            "holdout_mse": lowest[self.elite].mean(), "train_loss": loss / members,
            "rounds": torch.tensor(float(rounds)),
        }

    def update(self, optimizer: Adam, x: Tensor, y: Tensor) -> Tensor:
        """One step of every member on rows of its own: scaled inputs (E, N, in), what it predicts of them, in its unit,
        (E, N, n+1). Returns the loss, () without decay."""
        mean, log_var = self._bounded(self.net.each(x))
        loss = gaussian_loss(mean, log_var, y).mean(1).sum() + self.pull()
        optimizer.backward(loss)
        with torch.no_grad():  # the gradient of decay is known: no graph over all weights
            for rate, layer in self._decayed():
                assert layer.weight.grad is not None
                layer.weight.grad.add_(layer.weight, alpha=rate)
        optimizer.step(torch.isfinite(loss))
        return loss.detach()

    def check_ends(self, data: Transitions) -> None:
        """Raises UserError where more than one transition in a hundred ends, or goes on, against ``config.ends``."""
        wrong = float((self.ends(data.next_x) != data.terminal.bool()).float().mean())
        if wrong > 0.01:
            raise UserError(
                f"the model takes episodes to end by ends={self.config.ends!r}, but {100 * wrong:.1f} % of "
                f"{len(data.terminal)} real transitions say otherwise; choose among {', '.join(TERMINATIONS)}"
            )

    def _scaled(self, x: Tensor, action: Tensor) -> Tensor:
        return self.inputs(torch.cat([x, action], -1))

    def _bounded(self, out: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_var = out.float().chunk(2, -1)
        # (E, D) beside (E, ..., D)
        shape = (len(out), *(1,) * (out.ndim - 2), self.outputs)
        lower, upper = (x.view(shape) for x in self._limits(members))
        log_var = upper - F.softplus(upper - log_var)
        return mean, lower + F.softplus(log_var - lower)

    def _limits(self, members: Tensor | None) -> tuple[Tensor, Tensor]:
        return (self.lower, self.upper) if members is None else (self.lower[members], self.upper[members])

    def _decayed(self) -> list[tuple[float, EnsembleLinear]]:
        """Layers and the rates of their decay."""
        decays = self.config.decays
        layers = [cast(EnsembleLinear, layer) for layer in self.net.layers]
        return [(decays[min(i, len(decays) - 1)], layer) for i, layer in enumerate(layers)] if decays else []

    def _decay(self) -> Tensor:
        """() half the squared weights by their rates."""
        terms = [0.5 * rate * layer.weight.square().sum() for rate, layer in self._decayed()]
        return torch.stack(terms).sum() if terms else self.lower.new_zeros(())


def gaussian_loss(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    """(E, ...) mean over the last axis of (mu - y)^2 exp(-log_var) + log_var: twice the negative log-likelihood,
    without its constant."""
    return ((mean - target).square() * (-log_var).exp() + log_var).mean(-1)


def vector_axes(spec: EnvSpec) -> dict[str, int]:
    """Observations by key and how many axes each has, all of which must be numbers. Raises MisfitError for images and
    classes."""
    wrong = [key for key, array in spec.obs.items() if array.is_image or array.classes]
    if wrong or not spec.obs:
        raise MisfitError(
            f"this model is for observed vectors, but {spec.name} has {', '.join(wrong) or 'no observations'}; for "
            "images take a LatentModelConfig"
        )
    return {key: len(array.shape) for key, array in spec.obs.items()}


def read_vectors(obs: dict[str, Tensor], axes: dict[str, int]) -> Tensor:
    """(..., *) each to (..., n), float32, side by side."""
    flat = [obs[key].float().flatten(-n) if n else obs[key].float().unsqueeze(-1) for key, n in axes.items()]
    return torch.cat(flat, -1)


def _init(weight: Tensor, fan_in: int) -> None:
    """Truncated normal with standard deviation 1 / (2 sqrt(in))."""
    std = 0.5 / fan_in**0.5
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
