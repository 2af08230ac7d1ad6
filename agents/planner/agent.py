"""Acting by planning in the world model of another agent, which learns as it would without: "a Dreamer that plans".

The other agent's policy proposes and its critic judges where sequences end. Its checkpoints are this agent's too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.errors import UserError
from worldmodel.nn import precision
from worldmodel.nn.precision import Precision
from worldmodel.planning.gradcem import GradCEM
from worldmodel.planning.gradient import GradientPlanner
from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.protocols import Compiles, Imagines, Judges, Planner, Remembers, WorldModel
from worldmodel.rng import Stream
from worldmodel.tree import struct
from worldmodel.types import ArraySpec, Batch, EnvSpec, Plan, Step, Update

DIFFERENTIATING = (GradientPlanner, GradCEM)
"""Planners that torch.compile does not trace as one graph without a setting of its own."""


@struct
class PlannerCarry:
    """What acting remembers of N environments."""

    state: Any
    """(N, ...) latent state of the world model."""
    prev_action: Tensor
    """(N, A)."""
    plans: dict[str, Plan]
    """The last plan of each planner: "collect", "evaluate"."""
    rng: Tensor
    """State of this carry's own random stream."""


@dataclass(frozen=True, kw_only=True)
class PlannerAgentConfig:
    """An agent that learns, and planners that act in its place.

    >>> from worldmodel.agents.dreamer.agent import DreamerConfig
    >>> from worldmodel.planning.policy_mppi import PolicyMPPI
    >>> dreamer_plans = PlannerAgentConfig(agent=DreamerConfig(), evaluate=PolicyMPPI())
    """

    agent: Any
    """``build(spec, device, seed)`` gives an agent that ``Imagines``, ``Judges`` and ``Compiles``."""
    collect: Any = None
    """The ``Planner`` that acts while data is collected; None: the agent's policy, sampled."""
    evaluate: Any = None
    """The ``Planner`` that acts in evaluation; None: the mode of the agent's policy."""
    bootstrap: Literal["none", "last", "every"] = "last"
    """Where the agent's critic is added to a predicted return: nowhere, after the last step, after every step."""
    continuation: Literal["product", "threshold", "ignored"] = "product"
    """How predicted ends count, see ``ExpectedReturn``."""
    optimism: float = 0.0
    """Weight of the model's uncertainty in the score, where it knows it: negative avoids it, positive seeks it."""
    precision: Precision = "auto"
    """Of the networks while planning; "auto": bfloat16 on a GPU, float32 on a CPU. Scores are float32 always."""

    def build(self, spec: EnvSpec, *, device: torch.device | str = "cpu", seed: int = 0) -> PlannerAgent:
        return PlannerAgent(self, spec, torch.device(device), seed)


class PlannerAgent:
    """Implements ``Agent[PlannerCarry]`` around another agent."""

    def __init__(self, config: PlannerAgentConfig, spec: EnvSpec, device: torch.device, seed: int) -> None:
        """Raises: UserError for an agent without a model, a policy or a critic."""
        self.config, self.spec, self.device = config, spec, device
        self.agent: Any = config.agent.build(spec, device=device, seed=seed)
        _demand_abilities(self.agent)
        self.precision: precision.Numbers = precision.chosen(config.precision, device)
        chosen = {"collect": config.collect, "evaluate": config.evaluate}
        self.planners: dict[str, Planner] = {name: x for name, x in chosen.items() if x is not None}
        self.objective = ExpectedReturn(
            model=self.model, action=spec.action, discount=self.agent.discount, policy=self.agent.proposer,
            value=self.agent.worth, bootstrap=config.bootstrap, continuation=config.continuation,
            optimism=config.optimism,
        )
        # the tables of the agent, with our own way to act: who compiles or captures them, does it for both
        self.steps: dict[str, Callable[..., Any]] = self.agent.steps
        self.parts: dict[str, Callable[..., Any]] = self.agent.parts
        self.steps["act"] = self.act_step
        self.parts.pop("act", None)
        if not any(isinstance(x, DIFFERENTIATING) for x in self.planners.values()):
            self.parts["act"] = self.compute_action

    @property
    def model(self) -> WorldModel[Any]:
        """The agent's world model."""
        return self.agent.model

    @property
    def modules(self) -> nn.Module | None:
        """The agent's networks."""
        return getattr(self.agent, "modules", None)

    # Acting

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """What the world model wants kept; nothing of what an agent that plans by itself planned."""
        return self.agent.memory_spec if isinstance(self.model, Remembers) else {}

    def initial(self, num_envs: int, *, seed: int = 0) -> PlannerCarry:
        """A carry that knows nothing; ``seed`` starts its random stream."""
        size = self.spec.action.size
        return PlannerCarry(
            state=self.model.initial(num_envs), prev_action=torch.zeros(num_envs, size, device=self.device),
            plans={name: tree.to(x.initial(num_envs, size), self.device) for name, x in self.planners.items()},
            rng=Stream(seed=seed, device=self.device).state,
        )

    def act(self, carry: PlannerCarry, step: Step, *, explore: bool) -> tuple[Tensor, PlannerCarry]:
        """(N, A) by the planner for this purpose; where there is none, by the agent's policy as the agent would."""
        step, purpose = tree.to(step, self.device), "collect" if explore else "evaluate"
        with Stream(state=carry.rng, device=self.device) as stream:
            action, state, plan = self.steps["act"](
                carry.state, carry.prev_action, carry.plans.get(purpose), step.obs, step.is_first, purpose=purpose
            )
        plans = carry.plans if plan is None else carry.plans | {purpose: plan}
        return action, PlannerCarry(state=state, prev_action=action, plans=plans, rng=stream.state)

    def act_step(
        self, state: Any, prev_action: Tensor, plan: Plan | None, obs: dict[str, Tensor], is_first: Tensor, *,
        purpose: str,
    ) -> tuple[Tensor, Any, Plan | None]:
        """Latent state, action, plan and observations, (N, ...) each, to the next action, state and plan."""
        act = self.parts.get("act", self.compute_action)
        return act(state, prev_action, plan, obs, is_first, purpose=purpose)

    @torch.no_grad()
    def compute_action(
        self, state: Any, prev_action: Tensor, plan: Plan | None, obs: dict[str, Tensor], is_first: Tensor, *,
        purpose: str,
    ) -> tuple[Tensor, Any, Plan | None]:
        """What :meth:`act_step` gives, in one piece."""
        with precision.computing(self.precision, self.device):
            # (N, ...) -> (N, 1, ...): acting is observing a sequence of one
            one = {key: x.unsqueeze(1) for key, x in obs.items()}
            states = self.model.observe(state, one, prev_action.unsqueeze(1), is_first.unsqueeze(1))
            state = tree.index(states, (slice(None), 0))
            if plan is None:
                policy = self.agent.proposer(self.model.features(state))
                return policy.sample() if purpose == "collect" else policy.mode(), state, None
            plan, _ = self.planners[purpose](self.objective, state, plan, is_first)
        return plan.action, state, plan

    def memory(self, carry: PlannerCarry) -> dict[str, Tensor]:
        """(N, ...) the latents of the step just acted on, where the agent wants them kept."""
        model: Any = self.model
        return model.pack(carry.state) if self.memory_spec else {}

    # Everything else is the agent's

    def learn(self, batch: Batch) -> Update:
        return self.agent.learn(batch)

    def report(self, batch: Batch) -> dict[str, Tensor]:
        return self.agent.report(batch)

    def state_dict(self) -> dict[str, Tensor]:
        """The agent's own: a run's checkpoint can be evaluated with and without a planner."""
        return self.agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.agent.load_state_dict(state)


def _demand_abilities(agent: object) -> None:
    lacking = [kind.__name__ for kind in (Imagines, Judges, Compiles) if not isinstance(agent, kind)]
    if lacking:
        raise UserError(
            f"{type(agent).__name__} cannot be planned for: it lacks {' and '.join(lacking)} (worldmodel.protocols); "
            f"take an agent with a world model, a policy and a critic, such as a Dreamer"
        )
