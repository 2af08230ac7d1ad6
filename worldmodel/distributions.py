"""Distributions of world models and policies. Parameters and results are float32 whatever computes the logits."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels import dispatch, unimix_categorical
from worldmodel.kernels.twohot_loss import twohot_loss
from worldmodel.kernels.twohot_loss.reference import cross_entropy
from worldmodel.kernels.unimix_categorical.reference import index_of, mixed

Space = Literal["symlog", "symexp", "plain"]
"""How a scalar is predicted: as a two-hot code, by bins even in symlog space or at the values that these stand for, or
plainly as itself."""


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|) (DreamerV3, eq. 8)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of :func:`symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class Categorical:
    """Independent categoricals over the last axis, mixed with ``unimix`` of the uniform distribution.

    The mixture is *the* distribution: sampling, log-probabilities, KL and entropy all use it (DreamerV3, section
    "World model learning").
    """

    def __init__(self, logits: Tensor, unimix: float = 0.0) -> None:
        """Args: logits (..., K), any real scale; unimix in [0, 1)."""
        self.logits, self.unimix = logits.float(), unimix
        self.classes = logits.shape[-1]
        self._probs: Tensor | None = None
        self._log_probs: Tensor | None = None

    @property
    def probs(self) -> Tensor:
        """(..., K) of the mixture, computed once and where they are asked for: a kernel that samples has its own."""
        if self._probs is None:
            self._probs = mixed(self.logits, self.unimix)
        return self._probs

    @property
    def log_probs(self) -> Tensor:
        """(..., K) of the mixture, computed once and only where they are asked for: samples need none."""
        if self._log_probs is None:
            self._log_probs = torch.log(self.probs) if self.unimix else torch.log_softmax(self.logits, -1)
        return self._log_probs

    def sample_index(self, noise: Tensor) -> Tensor:
        """Class indices (...) by inverting the cumulative distribution at ``noise`` in [0, 1), shape (...).

        One uniform number a group instead of one a class: noise for a whole sequence is drawn ahead in one call.
        """
        return index_of(self.probs, noise)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """One-hot sample (..., K) with straight-through gradient on the mixed probabilities (not Gumbel)."""
        if noise is None:
            noise = torch.rand(self.logits.shape[:-1], device=self.logits.device)
        if dispatch.backend("unimix_categorical", self.logits) != "reference":
            return unimix_categorical.sample(self.logits, noise, unimix=self.unimix).onehot
        return self.straight_through(self.sample_index(noise))

    def straight_through(self, index: Tensor) -> Tensor:
        """One-hot of ``index`` (...) whose gradient is that of the probabilities."""
        onehot = F.one_hot(index, self.classes).float()
        return onehot + (self.probs - self.probs.detach())

    def mode(self) -> Tensor:
        """One-hot of the most probable class, with straight-through gradient."""
        return self.straight_through(self.probs.argmax(-1))

    def log_prob(self, onehot: Tensor) -> Tensor:
        """(...) log-probability of a one-hot (..., K)."""
        return (onehot * self.log_probs).sum(-1)

    def entropy(self) -> Tensor:
        """(...) in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """(...) KL[self || other] in nats."""
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)


class BoundedNormal:
    """Normal(tanh(mean), std) with std in (min_std, max_std); independent over the last axis, not squashed."""

    def __init__(self, mean: Tensor, std: Tensor, *, min_std: float = 0.1, max_std: float = 1.0) -> None:
        """Args: mean, std (..., A) raw network outputs; std = (max - min) sigmoid(std + 2) + min."""
        self.mean = torch.tanh(mean.float())
        self.std = (max_std - min_std) * torch.sigmoid(std.float() + 2.0) + min_std

    def sample(self) -> Tensor:
        """(..., A), reparameterised: gradient reaches mean and std."""
        return self.mean + self.std * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """(..., A)."""
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """(...) summed over A."""
        scaled = (value - self.mean) / self.std
        return (-0.5 * scaled.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(...) in nats, summed over A."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def symexp_bins(count: int = 255) -> Tensor:
    """(count,) bin centres, exponentially spaced and exactly antisymmetric: symexp(linspace(-20, 0)) mirrored."""
    if count % 2 != 1 or count < 3:
        raise ValueError(f"two-hot bins must be an odd number of at least 3, got {count}")
    half = symexp(torch.linspace(-20.0, 0.0, (count + 1) // 2, dtype=torch.float32))
    return torch.cat([half, -half[:-1].flip(0)])


class TwoHot:
    """A scalar as a categorical over fixed bins; its mean is a prediction, its loss a cross-entropy to the two bins
    next to the target (DreamerV3, eq. 9 and 10). Bins live in the space of the target: nothing is squashed."""

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        """Args: logits (..., K); bins (K,) ascending and antisymmetric, K odd."""
        self.logits = logits.float()
        self.bins = bins
        self._log_probs: Tensor | None = None

    @property
    def log_probs(self) -> Tensor:
        """(..., K), computed once, since a critic asks for two losses; without ``cached_property``, whose lock (Python
        3.11) ends a traced graph."""
        if self._log_probs is None:
            self._log_probs = torch.log_softmax(self.logits, -1)
        return self._log_probs

    def mean(self) -> Tensor:
        """(...) expectation. Bins reach e^20, so bin i is paired with bin -i before summing: equal probabilities on
        both sides (a zero-initialised head) give exactly 0."""
        probs = torch.softmax(self.logits, -1)
        middle = self.bins.shape[0] // 2
        # (..., K//2): from the outermost pair inwards
        low, high = probs[..., :middle], probs[..., middle + 1 :].flip(-1)
        return ((high - low) * self.bins[middle + 1 :].flip(0)).sum(-1) + probs[..., middle] * self.bins[middle]

    def loss(self, target: Tensor) -> Tensor:
        """(...) cross-entropy to the two-hot code of ``target`` (...), which gets no gradient."""
        if dispatch.backend("twohot_loss", self.logits) == "reference":
            return cross_entropy(self.log_probs, self.bins, target)
        return twohot_loss(self.logits, self.bins, target)


class SymlogTwoHot:
    """A scalar as a categorical over evenly spaced bins in symlog space (TD-MPC2).

    Its mean is taken in that space: symexp(sum p b), the mean of logarithms and not of values, which is low where the
    prediction is spread: {0, 100} with equal probability give 9.05. :class:`TwoHot` over symexp bins gives 50.
    """

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        """Args: logits (..., K); bins (K,) ascending, in symlog space."""
        self.code, self.bins = TwoHot(logits, bins), bins

    def mean(self) -> Tensor:
        """(...)"""
        # a sum and not a product of matrices, which autocast would take in bfloat16
        return symexp((torch.softmax(self.code.logits, -1) * self.bins).sum(-1))

    def loss(self, target: Tensor) -> Tensor:
        """(...) cross-entropy to the two-hot code of symlog(target), clamped to the bins; no gradient to ``target``."""
        return self.code.loss(symlog(target))


class Plain:
    """A scalar as itself, by its squared error (TD-MPC)."""

    def __init__(self, output: Tensor) -> None:
        """Args: output (..., 1)."""
        self.output = output.float().squeeze(-1)

    def mean(self) -> Tensor:
        """(...)"""
        return self.output

    def loss(self, target: Tensor) -> Tensor:
        """(...) (x - target)^2; no gradient to ``target``."""
        return (self.output - target.detach()).square()


def spaced_bins(count: int, limit: float, space: Space) -> Tensor:
    """(count,) evenly spaced in [-limit, limit], for "symexp" by value; for "plain" 1: as many as a head's outputs."""
    bins = torch.linspace(-limit, limit, count)
    return torch.zeros(1) if space == "plain" else bins if space == "symlog" else symexp(bins)


def scalar(logits: Tensor, bins: Tensor, space: Space) -> TwoHot | SymlogTwoHot | Plain:
    """Outputs (..., K), one for each of :func:`spaced_bins`, as the scalar (...) that they stand for."""
    if space == "plain":
        return Plain(logits)
    return SymlogTwoHot(logits, bins) if space == "symlog" else TwoHot(logits, bins)


class SquashedNormal:
    """tanh(u), u ~ Normal(mean, exp(log_std)); independent over the last axis (Haarnoja et al. 2018)."""

    def __init__(self, mean: Tensor, log_std: Tensor, counts: Tensor | None = None) -> None:
        """Args: mean, log_std (..., A), of u; counts (..., A) 1 where there is a number, 0 where there is none: that is
        0 and counts in nothing."""
        self.mean, self.log_std, self.counts = mean.float(), log_std.float(), counts
        if counts is not None:
            self.mean, self.log_std = self.mean * counts, self.log_std * counts

    def sample(self) -> Tensor:
        """(..., A) in [-1, 1], reparameterised."""
        return torch.tanh(self.draw()[0])

    def draw(self) -> tuple[Tensor, Tensor]:
        """u (..., A), what the action was before the tanh, reparameterised, and log N(u) (...)."""
        noise = torch.randn_like(self.mean)
        if self.counts is not None:
            noise = noise * self.counts
        # by the noise and not by (u - mean) / std, in which a small std leaves nothing of the digits
        return self.mean + self.log_std.exp() * noise, self._density(noise)

    def mode(self) -> Tensor:
        """(..., A) tanh(mean): the median, and not the mode of the squashed density."""
        return torch.tanh(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """(...) of actions (..., A), which are taken a hair inside of the bounds."""
        u = torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6))
        return self._density((u - self.mean) * torch.exp(-self.log_std)) - log_slope(u)

    def entropy(self) -> Tensor:
        """(...) in nats, an estimate from one sample, with gradient: there is no closed form."""
        u, before = self.draw()
        return log_slope(u) - before

    def _density(self, noise: Tensor) -> Tensor:
        each = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return (each if self.counts is None else each * self.counts).sum(-1)


class ClampedNormal:
    """Normal(tanh(mean), exp(log_std)) whose samples are cut off at the bounds; independent over the last axis (BMPC).

    Log-probabilities, entropy and KL are those of the normal, which the cut leaves out.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        """Args: mean (..., A) before the tanh, log_std (..., A)."""
        self.mean, self.log_std = torch.tanh(mean.float()), log_std.float()

    def sample(self) -> Tensor:
        """(..., A) in [-1, 1], reparameterised inside of them."""
        return (self.mean + self.log_std.exp() * torch.randn_like(self.mean)).clamp(-1, 1)

    def mode(self) -> Tensor:
        """(..., A)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """(...)"""
        scaled = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(...) in nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """(..., A) KL[self || Normal(mean, std)] in nats, of each number."""
        spread = ((2 * self.log_std).exp() + (self.mean - mean).square()) / (2 * std.square())
        return std.log() - self.log_std + spread - 0.5


class NoisedMode:
    """tanh(mean) and noise of a standard deviation that nobody learns, cut off at +-``reach``, the sum at the bounds;
    gradients pass through both cuts (DrQ-v2, TD-MPC)."""

    def __init__(self, mean: Tensor, std: Tensor, reach: float) -> None:
        """Args: mean (..., A) before the tanh; std (); reach: of the noise."""
        self.mean, self.std, self.reach = torch.tanh(mean.float()), std, reach

    def sample(self) -> Tensor:
        """(..., A) inside of [-1, 1]."""
        return self._cut((self.std * torch.randn_like(self.mean)).clamp(-self.reach, self.reach))

    def explore(self) -> Tensor:
        """(..., A) likewise, the noise as it comes."""
        return self._cut(self.std * torch.randn_like(self.mean))

    def mode(self) -> Tensor:
        """(..., A)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """(...) of the normal, which the cuts leave out."""
        scaled = (action - self.mean) / self.std
        return (-0.5 * scaled.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(...) in nats, of the normal: the same everywhere."""
        one = self.std.log() + 0.5 * math.log(2 * math.pi * math.e)
        return one.expand(self.mean.shape).sum(-1)

    def _cut(self, noise: Tensor) -> Tensor:
        action = self.mean + noise
        return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()


def log_slope(u: Tensor) -> Tensor:
    """log |d tanh(u) / du| (...) summed over A, exact at any u: 2 (log 2 - u - softplus(-2 u))."""
    return (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)
