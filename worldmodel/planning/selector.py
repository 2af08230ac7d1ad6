"""Candidate selection (COPlanner, Wang et al. 2024): of actions a policy proposes, the one whose rollout is best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.errors import UserError, check_range
from worldmodel.planning.objectives import WORST, candidates
from worldmodel.planning.population import Info, blank, pick, told
from worldmodel.protocols import PlanningObjective, WorldModel
from worldmodel.rollout import imagine, unroll
from worldmodel.tree import struct
from worldmodel.types import Plan, Trajectory
from worldmodel.uncertainty import doubt

S = TypeVar("S")

Act = Callable[[Tensor], Tensor]
"""Features (B, F) to a sample of the policy (B, A)."""
Value = Callable[[Tensor], Tensor]
"""Features (B, F) to values (B,)."""


@struct
class Rehearsal:
    """What K rollouts of the policy from each of B states gave."""

    first: Tensor
    """(B, K, A) first actions, with the gradient of their samples."""
    action: Tensor
    """(B, K, H, A) all of them, without."""
    reward: Tensor
    """(B, K) sum of rewards, and the value of the end where it is asked for."""
    doubt: Tensor
    """(B, K) the weighted sum of uncertainty, with its sign; 0 where none is asked for."""
    score: Tensor
    """(B, K) float32 J, always finite."""


@dataclass(frozen=True, kw_only=True)
class CandidateSelector:
    """Uncertainty-aware policy-guided MPC. Implements ``Planner``; carries nothing over.

        J_k = sum_{t<H} gamma_r^t r_{t+1} +- rate sum_{t<H} gamma_u^t u(s_t, a_t) (+ gamma_r^H V(s_H)),  a_t ~ policy

    The candidate with the highest J gives the action: its first. It judges the very rollouts in which the policy chose,
    by numbers of its own, so an objective's ``score`` is not asked. With one candidate it is the policy.
    """

    candidates: int = 4
    """K, sampled first actions; the mode is not among them."""
    horizon: int = 4
    """H, steps of each rollout."""
    mode: Literal["optimistic", "conservative"] = "optimistic"
    """Whether uncertainty is sought (to explore) or avoided (in dreams)."""
    rate: float = 1.0
    """alpha, weight of uncertainty; its unit is the model's."""
    reward_discount: float = 1.0
    """gamma_r. 1: the authors' Dreamer; 0.97: their MBPO."""
    doubt_discount: float = 1.0
    """gamma_u."""
    continuation: Literal["ignored", "product"] = "ignored"
    """Whether predicted ends cut rewards and uncertainty off (the authors: no)."""
    bootstrap: Literal["none", "last"] = "none"
    """Whether the value of the last state counts (the authors: no)."""

    def __post_init__(self) -> None:
        check_range(self, 1, "candidates", "horizon")
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}; the mode gives the sign")
        check_range(self, 0, "rate")
        check_range(self, 0, "reward_discount", "doubt_discount", high=1)

    @property
    def doubts(self) -> bool:
        """Whether it asks the model how unsure it is."""
        return self.rate > 0 and self.candidates > 1

    @property
    def evaluations(self) -> int:
        """Model steps a decision."""
        return self.candidates * self.horizon if self.candidates > 1 else 0

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, self.horizon, action_size)

    def __call__(self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor) -> tuple[Plan, Info]:
        """The best of K rollouts of the objective's policy; ``std`` is that of the candidates."""
        policy = objective.policy
        if policy is None:
            raise UserError(
                "CandidateSelector chooses among samples of a policy, and the objective has none; hand over policy="
            )
        bounds = objective.action.kind == "continuous"

        def act(features: Tensor) -> Tensor:
            action = policy(features).sample()
            return action.clamp(-1, 1) if bounds else action

        played = self.rehearse(objective.model, act, state, value=objective.value)
        index = played.score.argmax(1, keepdim=True)
        mean = pick(played.action, index)[:, 0]
        new = Plan(action=mean[:, 0], mean=mean, std=played.action.std(1, correction=0), kept=plan.kept)
        return new, told(played.score, self.candidates * self.horizon, doubt=pick(played.doubt, index)[:, 0])

    def select(self, model: WorldModel[S], act: Act, state: S, *, value: Value | None = None) -> tuple[Tensor, Info]:
        """(B, A) one sample of the policy, with that sample's gradient; and what the choice was about, each (B,).

        With K = 1 it is ``act(model.features(state))`` and nothing else: the same random numbers are used.
        """
        if self.candidates == 1:
            return act(model.features(state)), {}
        played = self.rehearse(model, act, state, value=value)
        index = played.score.argmax(1, keepdim=True)

        def gain(x: Tensor) -> Tensor:
            return pick(x, index)[:, 0] - x.mean(1)

        of_reward, of_doubt = played.reward.std(1, correction=0), played.doubt.std(1, correction=0)
        about = {
            "score_gain": gain(played.score), "reward_gain": gain(played.reward), "doubt_gain": gain(played.doubt),
            # near 0 rewards decide, near 1 uncertainty does
            "doubt_share": of_doubt / (of_reward + of_doubt).clamp(min=1e-12),
        }
        return pick(played.first, index)[:, 0], about

    def rehearse(self, model: WorldModel[S], act: Act, state: S, *, value: Value | None = None) -> Rehearsal:
        """Let the policy play H steps, K times from each state (B, ...); one batch of B*K."""
        wide = candidates(model, state, self.candidates)
        first = act(model.features(wide))
        with torch.no_grad():
            played = unroll(model, lambda now, t: act(model.features(now)) if t else first, wide, self.horizon)
            reward, doubt = self._sums(model, played, value)
            total = reward + doubt
            score = torch.where(total.isfinite(), total, WORST)
        shape = (-1, self.candidates)
        return Rehearsal(
            first=first.unflatten(0, shape), action=played.action.unflatten(0, shape), reward=reward.view(shape),
            doubt=doubt.view(shape), score=score.view(shape),
        )

    def _sums(self, model: WorldModel[S], played: Trajectory[S], value: Value | None) -> tuple[Tensor, Tensor]:
        """(B,) discounted rewards and (B,) signed, weighted, discounted uncertainty of rollouts."""
        steps = torch.arange(self.horizon + 1, device=played.reward.device)
        # (B, H+1) of being in states 0..H at all
        alive = torch.ones_like(played.reward[:, :1]).float()
        alive = torch.cat([alive, played.continues.float().cumprod(1)], 1)
        if self.continuation == "ignored":
            alive = torch.ones_like(alive)
        weight = self.reward_discount**steps * alive
        reward = (weight[:, :-1] * played.reward.float()).sum(1)
        if self.bootstrap == "last":
            if value is None:
                raise UserError("bootstrap='last' asks for a value, and none was given; take bootstrap='none'")
            end = tree.index(played.states, (slice(None), -1))
            reward = reward + weight[:, -1] * value(model.features(end)).float()
        if not self.rate:
            return reward, torch.zeros_like(reward)
        before = tree.index(played.states, (slice(None), slice(None, -1)))
        weight = (self.doubt_discount**steps * alive)[:, :-1]
        sign = 1.0 if self.mode == "optimistic" else -1.0
        return reward, sign * self.rate * (weight * doubt(model, before, played.action)).sum(1)


@dataclass(frozen=True, kw_only=True)
class DreamSelector:
    """Selection inside of imagination: dreams that stay where the model can be trusted. Each selected step costs K*H
    model steps beside the one that is taken, so some of it can be saved."""

    selector: CandidateSelector = field(default_factory=lambda: CandidateSelector(mode="conservative", rate=0.5))
    spared: int = 1
    """Actions at the start of a dream that are plain samples of the policy (the authors: the first)."""
    every: int = 1
    """Of those that follow, each n-th is selected."""
    fraction: float = 1.0
    """Share of the dreams, drawn anew each time, in which anything is selected."""

    def __post_init__(self) -> None:
        check_range(self, 1, "every")
        check_range(self, 0, "spared")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")

    @property
    def steps(self) -> slice:
        """Which actions of a dream are selected."""
        return slice(self.spared, None, self.every)

    def evaluations(self, horizon: int) -> float:
        """Model steps of a dream of this horizon, on average: its own, and those of candidates."""
        return horizon + len(range(horizon)[self.steps]) * self.fraction * self.selector.evaluations

    def imagine(
        self, model: WorldModel[S], act: Act, state: S, horizon: int, *, value: Value | None = None
    ) -> tuple[Trajectory[S], dict[str, Tensor]]:
        """As ``rollout.imagine``, with actions selected; and the means () of what :meth:`CandidateSelector.select`
        tells. Where nothing is selected the same random numbers are used as there."""
        features = model.features(state)
        rows = features.shape[0]
        count = max(1, round(self.fraction * rows))
        if count == rows:
            return self._selected(model, act, state, horizon, value)
        order = torch.rand(rows, device=features.device).argsort()
        some, others = (tree.index(state, part) for part in (order[:count], order[count:]))
        selected, said = self._selected(model, act, some, horizon, value)
        both = tree.cat([selected, imagine(model, act, others, horizon)])
        return tree.index(both, order.argsort()), said

    def _selected(
        self, model: WorldModel[S], act: Act, state: S, horizon: int, value: Value | None
    ) -> tuple[Trajectory[S], dict[str, Tensor]]:
        """Dreams in all of which is selected."""
        said: list[Info] = []
        steps = range(horizon)[self.steps]

        def choose(now: S, t: int) -> Tensor:
            if t not in steps:
                return act(model.features(now))
            action, about = self.selector.select(model, act, now, value=value)
            said.append(about)
            return action

        dream = unroll(model, choose, state, horizon)
        names = said[0] if said else {}
        return dream, {name: torch.stack([about[name].mean() for about in said]).mean() for name in names}
