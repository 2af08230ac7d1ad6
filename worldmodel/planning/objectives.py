"""What sequences of actions are worth in a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.errors import UserError
from worldmodel.protocols import Forks, Policy, Uncertain, WorldModel
from worldmodel.rollout import follow, proposals
from worldmodel.types import ActionSpec, Trajectory

S = TypeVar("S")

WORST = -1e30
"""The score of a sequence on which the model is not finite. A finite number, or weights of it would be NaN."""


@dataclass(frozen=True, kw_only=True)
class ExpectedReturn(Generic[S]):
    """Predicted return of a sequence, with optional bootstrap and uncertainty. Implements ``PlanningObjective``.

        J = sum_{t<H} w_t (r_{t+1} + optimism u_t) + w_H V(s_H),    w_t = prod_{i<=t} discount c_i,  w_0 = 1

    TD-MPC2: ``value=policy_value(policy, q)``, ``bootstrap="last"``, ``continuation="threshold"``. FOWM (Finetuning
    Offline World Models, eq. 5) besides: ``doubt=q_spread(model, q)``, ``optimism=-1``, ``doubts_end=True``.
    """

    model: WorldModel[S]
    action: ActionSpec
    discount: float = 0.99
    """In [0, 1]."""
    discounts: Callable[[S], Tensor] | None = None
    """States (B, ...) to the discount (B,) of each row, where tasks differ; without it ``discount`` is everybody's."""
    policy: Policy | None = None
    """What proposes sequences, and the prior of trees."""
    value: Callable[[Tensor], Tensor] | None = None
    """Features (..., F) to values (...)."""
    bootstrap: Literal["none", "last", "every"] = "none"
    """Where ``value`` is added: nowhere, after the last step, or the mean over plans cut after every step
    (EfficientTDMPC)."""
    continuation: Literal["product", "threshold", "ignored"] = "product"
    """How predicted ends count: by their probability, for good once it exceeds 1/2 (TD-MPC2), or not (COPlanner)."""
    optimism: float = 0.0
    """Weight of uncertainty: negative avoids it, positive seeks it."""
    doubt: Callable[[S, Tensor], Tensor] | None = None
    """States (B, ...) and actions (B, A) to uncertainty (B,); without it the model's own, where it is ``Uncertain``."""
    doubts_end: bool = False
    """Weigh the uncertainty of the policy's action in the last state too, as part of its value (FOWM)."""
    depth: Tensor | None = None
    """() how many steps count, of sequences that may be longer; what comes after is nobody's. None: all of them."""

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be in [0, 1], got {self.discount}")
        if self.bootstrap != "none" and self.value is None:
            raise UserError(
                f"bootstrap={self.bootstrap!r} asks for a value, and none was given; hand over value=, for instance an "
                f"agent's critic, or take bootstrap='none'"
            )
        if self.optimism and self.doubt is None and not isinstance(self.model, Uncertain):
            raise UserError(
                f"optimism={self.optimism} weighs uncertainty, but {type(self.model).__name__} has no disagreement; "
                f"hand over doubt=, or take optimism=0"
            )
        if self.doubts_end and (self.policy is None or self.bootstrap == "none"):
            raise UserError("doubts_end asks for a bootstrap and for the policy that acts there; hand over both")

    def score(self, state: S, action: Tensor) -> Tensor:
        """(B, ...) state and (B, N, H, A) candidates -> (B, N)."""
        b, n = action.shape[:2]
        return self.worth(follow(self.model, candidates(self.model, state, n), action.flatten(0, 1))).view(b, n)

    def propose(self, state: S, count: int, horizon: int) -> Tensor:
        """(B, count, H, A) sampled from the policy, continuous actions within [-1, 1]."""
        policy = self.policy
        if policy is None:
            raise UserError("this planner asks the policy for proposals, and the objective has none; hand over policy=")

        def act(features: Tensor) -> Tensor:
            action = policy(features).sample()
            return action.clamp(-1, 1) if self.action.kind == "continuous" else action

        start = candidates(self.model, state, count)
        return proposals(self.model, act, start, horizon).unflatten(0, (-1, count))

    def worth(self, trajectory: Trajectory[S]) -> Tensor:
        """J of each row of a rollout, (B,) float32."""
        gain = trajectory.reward.float()
        alive = trajectory.continues.float()
        if self.continuation == "threshold":
            alive = (alive >= 0.5).float()
        elif self.continuation == "ignored":
            alive = torch.ones_like(alive)
        # (B, H) of arriving in state t + 1; rewards count by the weight of the state they were earned in
        discount: float | Tensor = self.discount
        if self.discounts is not None:
            discount = self.discounts(tree.index(trajectory.states, (slice(None), 0))).unsqueeze(1)
        weight = (discount * alive).cumprod(1)
        if self.optimism:
            before = tree.index(trajectory.states, (slice(None), slice(None, -1)))
            gain = gain + self.optimism * self._doubt(before, trajectory.action)
        gain = torch.cat([gain[:, :1], weight[:, :-1] * gain[:, 1:]], 1)
        if self.depth is not None:
            return self._cut_off(trajectory, gain.cumsum(1), weight, self.depth)
        if self.bootstrap == "every":
            after = tree.index(trajectory.states, (slice(None), slice(1, None)))
            total = (gain.cumsum(1) + weight * self._end(after)).mean(1)
        elif self.bootstrap == "last":
            after = tree.index(trajectory.states, (slice(None), slice(-1, None)))
            total = gain.sum(1) + weight[:, -1] * self._end(after)[:, 0]
        else:
            total = gain.sum(1)
        return torch.where(total.isfinite(), total, WORST)

    def _cut_off(self, trajectory: Trajectory[S], totals: Tensor, weight: Tensor, depth: Tensor) -> Tensor:
        """J of the first ``depth`` steps, given what rewards sum to (B, H) up to each step."""
        if self.bootstrap != "none":
            after = tree.index(trajectory.states, (slice(None), slice(1, None)))
            totals = totals + weight * self._end(after)
        at = torch.arange(totals.shape[1], device=totals.device)
        taken = at < depth if self.bootstrap == "every" else at == depth - 1
        total = torch.where(taken, totals, 0.0).sum(1) / taken.sum()
        return torch.where(total.isfinite(), total, WORST)

    def _end(self, state: S) -> Tensor:
        """(B, T) what being in states (B, T, ...) is worth."""
        assert self.value is not None
        features = self.model.features(state)
        value = self.value(features).float()
        if self.doubts_end and self.optimism:
            assert self.policy is not None
            value = value + self.optimism * self._doubt(state, self.policy(features).sample())
        return value

    def _doubt(self, state: S, action: Tensor) -> Tensor:
        doubt = self.doubt or self.model.disagreement  # type: ignore[attr-defined]  # __post_init__ asked
        return doubt(tree.flatten_time(state), action.flatten(0, 1)).float().view(action.shape[:2])


def candidates(model: WorldModel[S], state: S, count: int) -> S:
    """(B, ...) -> (B*count, ...), every row ``count`` times."""
    if isinstance(model, Forks):
        return model.fork(state, count)
    return tree.map(lambda x: x.repeat_interleave(count, 0), state)


def policy_value(policy: Policy, q: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """V(s) = Q(s, a), a ~ policy: ``q(features, action) -> (...)``."""
    return lambda features: q(features, policy(features).sample())


def q_spread(model: WorldModel[S], q: Callable[[Tensor, Tensor], Tensor]) -> Callable[[S, Tensor], Tensor]:
    """Standard deviation over the members of a Q-ensemble: ``q(features, action) -> (members, ...)``."""

    def doubt(state: Any, action: Tensor) -> Tensor:
        return q(model.features(state), action).float().std(0)

    return doubt
