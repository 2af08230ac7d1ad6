"""What doubt of a model costs beyond reward: a state that dreams halt in (MOReL), a price in the targets of dreamed
transitions (MOBILE), and values of unusual actions that are pressed down (CQL, COMBO)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.rules.base import Learner
from worldmodel.errors import check_range
from worldmodel.types import Transitions


@dataclass(frozen=True, kw_only=True)
class HaltConfig:
    """Where dreams end for doubt: members disagree by more than they do on the data. MOReL (Kidambi et al. 2020) falls
    into a state there that it never leaves; NEUBAY (2026) only goes no further, so that branches are as long as the
    model is good."""

    coefficient: float = 0.0
    """The disagreement that counts, over the data, divided by this, is the most that goes on (MOReL's code: 3, NEUBAY:
    1); 0: dreams never end for doubt."""
    quantile: float = 1.0
    """Which disagreement over the data counts; 1: the largest."""
    earns: Literal["least", "fixed", "bootstrap"] = "least"
    """What comes after: steps that earn the least reward of the data for ever, or ``reward``; or what the critic says
    of the state arrived in, as at the end of any branch."""
    reward: float = 0.0
    """-kappa. The authors' 0 is a prize where rewards are negative."""

    def __post_init__(self) -> None:
        check_range(self, 0, "coefficient")
        check_range(self, 0, "quantile", high=1)
        if self.earns not in ("least", "fixed", "bootstrap"):
            raise ValueError(f"earns must be least, fixed or bootstrap, got {self.earns!r}")


class Halt(nn.Module):
    """The threshold and the price, measured on the data; part of the agent's state."""

    threshold: Tensor
    price: Tensor

    def __init__(self, config: HaltConfig, discount: float) -> None:
        super().__init__()
        self.config, self.discount = config, discount
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("price", torch.zeros(()))

    @torch.no_grad()
    def measure(self, disagreement: Tensor, reward: Tensor) -> None:
        """Of all data, (N,) each."""
        c = self.config
        # the k-th smallest: torch's quantile takes no more than 16 million numbers
        rank = max(1, math.ceil(c.quantile * len(disagreement)))
        self.threshold.copy_(disagreement.kthvalue(rank).values / c.coefficient)
        if c.earns != "bootstrap":
            each = reward.min() if c.earns == "least" else torch.as_tensor(c.reward)
            # discounted from the step after the one that led there, for ever
            self.price.copy_(self.discount * each / (1 - self.discount))

    def apply_to(
        self, doubt: Tensor, reward: Tensor, terminal: Tensor, edge: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N,) each: reward, with what comes after in it; terminal; edge; and which ended here."""
        halted = (doubt > self.threshold).float() * (1 - terminal)
        if self.config.earns == "bootstrap":
            return reward, terminal, torch.maximum(edge, halted), halted
        return reward + halted * self.price, torch.maximum(terminal, halted), edge * (1 - halted), halted


@dataclass(frozen=True, kw_only=True)
class InconsistencyConfig:
    """MOBILE (Sun et al. 2023): what members of the model differ in about the value of what comes next."""

    weight: float = 0.0
    """beta; 0: none."""
    samples: int = 10
    """Drawn from every elite."""

    def __post_init__(self) -> None:
        check_range(self, 0, "weight")
        check_range(self, 1, "samples")


@torch.no_grad()
def inconsistency(it: Learner, data: Transitions, samples: int) -> Tensor:
    """(N,) the standard deviation over members of how much they say is to come; 0 for transitions that were lived."""
    dreamed = slice(it.real, None)
    outcomes = it.model.outcomes(it.place(data.x[dreamed]), data.action[dreamed], samples)
    action = it.actor(outcomes).sample()
    cost = losses.inconsistency(value=it.value.target(outcomes, action))
    return torch.cat([cost.new_zeros(it.real), cost])


@dataclass(frozen=True, kw_only=True)
class ConservatismConfig:
    """CQL (Kumar et al. 2020) and, where dreams are in the batch, COMBO (Yu et al. 2021): values of actions that are
    drawn fall, those of the data's actions rise. The weight is fixed, as in the runs on vectors of both."""

    weight: float = 0.0
    """alpha of CQL, beta of COMBO; 0: none."""
    actions: int = 10
    """Drawn from the policy at s, from the policy at s', and from everywhere; each so many."""
    temperature: float = 1.0
    over: Literal["mix", "dreams"] = "mix"
    """States at which actions are drawn: all of the batch, or the dreamed ones."""

    def __post_init__(self) -> None:
        check_range(self, 0, "weight")
        check_range(self, 1, "actions")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.over not in ("mix", "dreams"):
            raise ValueError(f"over must be mix or dreams, got {self.over!r}")


def conservatism(it: Learner, data: Transitions, config: ConservatismConfig) -> Tensor:
    """() what is added to the critics' loss. It teaches critics alone: actions are drawn without gradient."""
    at = slice(it.real, None) if config.over == "dreams" else slice(None)
    x, next_x, count = data.x[at], data.next_x[at], config.actions
    with torch.no_grad():
        drawn: list[tuple[Tensor, Tensor]] = []
        for seen in (x, next_x):
            drawn.append(it.actor(seen).times(count).sample_with_log_prob())
        anywhere = torch.rand_like(drawn[0][0]) * 2 - 1
        drawn.append((anywhere, torch.full_like(drawn[0][1], -anywhere.shape[-1] * math.log(2))))
        action, log_density = (torch.cat([*parts], 1) for parts in zip(*drawn))
    # (E, N, 3 count): all are tried in s, those that were drawn in s' too
    asked = it.value.every(x.unsqueeze(1).expand(-1, action.shape[1], -1), action)
    lived = slice(None, it.real)
    done = it.value.every(data.x[lived], data.action[lived])
    gap = losses.conservative_gap(asked=asked, log_density=log_density, done=done, temperature=config.temperature)
    return config.weight * gap


def unable(model: Any, wanted: type, because: str) -> str:
    """The sentence for a model that lacks an ability."""
    what = "no model" if model is None else type(model).__name__
    return f"{because} needs a model that is {wanted.__name__}, such as an EnsembleModel, and got {what}"
