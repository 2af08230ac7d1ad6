"""TD-MPC2: plan in the latent space of an implicit world model, with a policy and Q-functions (Hansen et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.agents.tdmpc2.critic import Critic
from worldmodel.agents.tdmpc2.policy import PriorConfig, Spread
from worldmodel.agents.tdmpc2.ramp import Ramp, RampConfig
from worldmodel.agents.values.ensemble_q import EnsembleQConfig
from worldmodel.agents.values.expectile import Expectile, ExpectileConfig
from worldmodel.errors import MisfitError, check_range
from worldmodel.models.implicit import ImplicitModelConfig, Latent
from worldmodel.nn import precision
from worldmodel.nn.optim import Adam
from worldmodel.nn.precision import Precision
from worldmodel.nn.state import Skipped, joined, parted
from worldmodel.planning.objectives import ExpectedReturn, policy_value, q_spread
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.rng import Stream
from worldmodel.tree import struct
from worldmodel.types import ArraySpec, Batch, EnvSpec, Plan, Step, Update

MANY = 20
"""Actions of so many numbers get further iterations of planning."""


@struct
class Carry:
    """What acting remembers of N environments."""

    plan: Plan
    """(N, ...) of the last decision: where the next one begins, unless an episode does."""
    rng: Tensor
    """State of this carry's own random stream: who holds another carry disturbs nobody."""


@dataclass(frozen=True, kw_only=True)
class TDMPC2Config:
    """Model, policy, Q-functions and planner; the defaults are those of TD-MPC2's 5M where they are numbers, and ours
    where they are choices (``configs/tdmpc2.py`` has both as modes)."""

    model: Any = field(default_factory=ImplicitModelConfig)
    """``build(spec) -> ImplicitModel``."""
    policy: PriorConfig = field(default_factory=PriorConfig)
    value: Any = field(default_factory=EnsembleQConfig)
    """``build(feature_dim, action) -> EnsembleQ``."""
    planner: Any = field(default_factory=lambda: PolicyMPPI(exploration=1.0))
    """Collects."""
    evaluator: Any = field(default_factory=lambda: PolicyMPPI(select="mean"))
    """Evaluates: the planner's horizon, and what it executes may differ. TD-MPC2 samples an elite here too."""
    more_iterations: int = 2
    """Further iterations of both where actions have 20 numbers or more."""
    behaviour: Literal["planner", "policy"] = "planner"
    """What acts; the policy alone is the model-free reference."""
    ramp: RampConfig = field(default_factory=RampConfig)
    """What begins elsewhere than it ends: the planner's horizon and spread, the policy's noise."""
    critic: Literal["joint", "apart"] = "joint"
    """Where Q-functions learn: with the model, in imagined states, with gradient into it (TD-MPC); or after it, in what
    the first observations of sequences are encoded as, constants, by an optimiser of their own (TCRL). The policy
    learns in the same states."""
    steps: int = 1
    """Rewards that targets count before they bootstrap, where Q-functions learn apart (TCRL: 3)."""
    bootstrap: Literal["policy", "expectile"] = "policy"
    """What targets of Q continue with: Q of what the policy does, or an expectile of Q of what was done (FOWM)."""
    expectile: ExpectileConfig = field(default_factory=ExpectileConfig)
    """The value of states that is that expectile."""
    pessimism: float = 0.0
    """What planning subtracts for every action, of standard deviations over the Q-functions, and for the policy's where
    a plan ends (lambda of FOWM)."""
    policy_target: Literal["value", "planner", "advantage"] = "value"
    """What the policy learns: to maximise values; to do what planning did (BMPC, which keeps the plan of every decision
    in replay; needs ``replay.memory="steps"``, and of continuous actions ``policy.form="clamped"``); or to do what was
    done the more the better it was (FOWM; needs ``bootstrap="expectile"``)."""
    reanalyse_every: int = 0
    """Updates between two times that states of a batch are planned anew, and what is kept of them replaced; 0: never.
    BMPC: 10."""
    reanalyse_rows: int = 20
    """Sequences of the batch that are, each in all its steps."""
    continuation: Literal["product", "threshold"] = "product"
    """How planning counts predicted ends: by their probability, or for good once it exceeds 1/2 (TD-MPC2)."""
    seeding: Literal["uniform", "behaviour"] = "uniform"
    """What collects before the first update."""
    discounting: Literal["episode", "fixed"] = "episode"
    """The discount by the length of an episode where that is known, (L/5 - 1) / (L/5) within [0.95, 0.995], or
    ``discount``."""
    discount: float = 0.99
    value_scale: float = 0.1
    policy_scale: float = 1.0
    """What the policy's loss is multiplied by, the mean over steps; by their number it is their sum (TD-MPC: 6)."""
    ceiling: float = 0.0
    """A sequence whose loss of a kind is larger moves nothing by it (TD-MPC: 1e4); 0: any does."""
    spread_rate: float = 0.01
    """Rate of the running scale of values in the policy's loss; 0: it stays 1."""
    slow_every: int = 1
    """Updates after which what follows slowly is moved (TD-MPC: 2)."""
    lr: float = 3e-4
    encoder_rate: float = 0.3
    """Learning rate of the encoder over that of the rest."""
    clip: float = 20.0
    """Bound on the norm of the gradient, of the policy's for itself."""
    clipped: Literal["all", "model"] = "all"
    """Whose: the policy's and that of Q-functions apart too, or the model's alone (TCRL)."""
    decay: float = 0.0
    """Of weights, added to the gradient of what learns with the model (TCRL: 1e-6)."""
    policy_eps: float = 1e-5
    """Adam's epsilon for the policy; 1e-8 for the rest."""
    precision: Precision = "auto"
    """Of matrix products and convolutions; "auto": bfloat16 on a GPU, float32 on a CPU. Parameters, norms, softmax,
    two-hot, returns, elite scores and losses are float32 always."""

    def __post_init__(self) -> None:
        check_range(self, 0, "discount", "spread_rate", high=1)
        check_range(self, 0, "reanalyse_every", "more_iterations", "value_scale", "lr", "encoder_rate", "clip")
        check_range(self, 0, "policy_eps", "policy_scale", "ceiling", "decay", "pessimism")
        if (self.policy_target == "advantage") > (self.bootstrap == "expectile"):
            raise ValueError("policy_target='advantage' is over the value of states; take bootstrap='expectile'")
        if self.bootstrap == "expectile" and self.critic == "apart":
            raise ValueError("bootstrap='expectile' learns with the model; take critic='joint'")
        if self.pessimism and self.value.members < 2:
            raise ValueError(f"pessimism={self.pessimism} is of how far Q-functions differ; take value.members >= 2")
        check_range(self, 1, "reanalyse_rows", "steps", "slow_every")
        if self.steps > 1 and self.critic == "joint":
            raise ValueError(f"steps={self.steps} is of critic='apart'; with 'joint' every step has its own target")

    def build(self, spec: EnvSpec, *, device: torch.device | str = "cpu", seed: int = 0) -> TDMPC2:
        return TDMPC2(self, spec, torch.device(device), seed)


class TDMPC2:
    """Implements ``Agent[Carry]``."""

    def __init__(self, config: TDMPC2Config, spec: EnvSpec, device: torch.device, seed: int) -> None:
        self.config, self.spec, self.device = config, spec, device
        self.precision: precision.Numbers = precision.chosen(config.precision, device)
        with Stream(seed=seed):
            self.model = config.model.build(spec).to(device)
            self.policy = config.policy.build(self.model.feature_dim, spec.action, masked=bool(spec.tasks)).to(device)
            self.value = config.value.build(self.model.feature_dim, spec.action).to(device)
        self.spread = Spread(config.spread_rate).to(device)
        self.modules = nn.ModuleDict(
            {"model": self.model, "policy": self.policy, "value": self.value, "spread": self.spread}
        )
        self.states: Expectile | None = None
        if config.bootstrap == "expectile":
            with Stream(seed=seed + 1):
                self.states = config.expectile.build(self.model.feature_dim).to(device)
            self.modules["states"] = self.states
        seen = [*self.model.encoder.parameters(), *self.model.project.parameters()]
        fast = {id(p) for p in seen}
        apart, bound = config.critic == "apart", config.clip if config.clipped == "all" else 0.0
        parts = [self.model] if apart else [self.model, self.value]
        parts += [] if self.states is None else [self.states]
        rest = [p for part in parts for p in part.parameters() if id(p) not in fast]
        self.optimizer = Adam(
            [(seen, config.lr * config.encoder_rate), (rest, config.lr)], clip=config.clip, decay=config.decay
        )
        self.policy_optimizer = Adam([(self.policy.parameters(), config.lr)], eps=config.policy_eps, clip=bound)
        self.value_optimizer = Adam([(self.value.parameters(), config.lr)], clip=bound) if apart else None
        self.discount = config.discount
        if config.discounting == "episode" and spec.max_steps:
            self.discount = discount_of(spec.max_steps)
        self.discounts: Tensor | None = None
        """(K,) of each task, where there are several."""
        if spec.tasks:
            if apart:
                raise MisfitError("Q-functions that learn apart know one task; take critic='joint'")
            known = [(task.max_steps or 0) * (config.discounting == "episode") for task in spec.tasks]
            found = [discount_of(steps) if steps else config.discount for steps in known]
            self.discounts = torch.tensor(found, device=device)
        self.scales = {**self.model.loss_scales, "value": config.value_scale, "states": config.value_scale}
        self.ramp = Ramp(
            config.ramp, horizon=config.planner.horizon, std=getattr(config.planner, "min_std", 0.0),
            noise=config.policy.noise, device=device,
        )
        if self.ramp.quietens:
            self.policy.noise = self.ramp.noise
        self.critic = Critic(
            self.model, self.policy, self.value, self.states, config.steps,
            self.discount if self.discounts is None else self.discounts,
        )
        self.planners = {True: self._sized(config.planner), False: self._sized(config.evaluator)}
        plans = [tree.map(lambda x: x.shape, x.initial(1, spec.action.size)) for x in self.planners.values()]
        if plans[0] != plans[1]:
            raise MisfitError("planner and evaluator go on from one another's plans; give both one horizon")
        self.objective = ExpectedReturn(
            model=self.model, action=spec.action, discount=self.discount, policy=self.policy,
            value=self.worth, bootstrap="last", continuation=config.continuation,
            depth=self.ramp.depth if self.ramp.shortens else None, optimism=-config.pessimism, doubt=self._doubt,
            doubts_end=config.pessimism > 0, discounts=None if self.discounts is None else self._discount_of,
        )
        self._keeps = config.policy_target == "planner"
        if self._keeps and spec.action.kind == "continuous" and config.policy.form != "clamped":
            raise MisfitError('policy_target="planner" compares normals; take policy.form="clamped"')
        self.updates = torch.zeros((), device=device)
        self.skipped = Skipped(device)
        self.calls = 0
        """Updates made, for the host: before the first, ``seeding`` says what acts."""
        self.streams = {"learn": Stream(seed=seed * 1000 + 1, device=device)}
        self.steps: dict[str, Callable[..., Any]] = {
            "learn": self.learn_step, "act": self.act_step, "reanalyse": self.reanalyse_step
        }
        self.parts: dict[str, Callable[..., Any]] = {
            "model": self.compute_model_loss, "policy": self.compute_policy_loss, "act": self.compute_action
        }
        if apart:
            self.parts["value"] = self.compute_value_loss

    def _sized(self, planner: Any) -> Any:
        if not isinstance(planner, PolicyMPPI):
            if self.ramp.widens:
                raise MisfitError(f"ramp.std is of PolicyMPPI, not of {type(planner).__name__}; take ramp.std=0")
            return planner
        if self.ramp.widens:
            planner = dataclasses.replace(planner, min_std=cast(float, self.ramp.std))
        if self.spec.action.size >= MANY:
            planner = dataclasses.replace(planner, iterations=planner.iterations + self.config.more_iterations)
        return planner

    # Acting

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """What was planned, where the policy learns that; a latent is made of one observation."""
        return {"expert": ArraySpec(shape=(self.policy.expert_size,), dtype="float32")} if self._keeps else {}

    def initial(self, num_envs: int, *, seed: int = 0) -> Carry:
        """A carry that knows nothing; ``seed`` starts its random stream."""
        plan = tree.to(self.planners[True].initial(num_envs, self.spec.action.size), self.device)
        return Carry(plan=plan, rng=Stream(seed=seed, device=self.device).state)

    def act(self, carry: Carry, step: Step, *, explore: bool) -> tuple[Tensor, Carry]:
        """(N, A) what the planner says, or the policy, or chance while nothing was learned."""
        step = tree.to(step, self.device)
        with Stream(state=carry.rng, device=self.device) as stream:
            if explore and not self.calls and self.config.seeding == "uniform":
                action, plan = self._chance(step), carry.plan
            else:
                action, plan = self.steps["act"](carry.plan, step.obs, step.is_first, explore=explore)
        return action, Carry(plan=plan, rng=stream.state)

    def act_step(
        self, plan: Plan, obs: dict[str, Tensor], is_first: Tensor, *, explore: bool
    ) -> tuple[Tensor, Plan]:
        """Plan (N, ...) and observations (N, ...) to the next action (N, A) and plan."""
        return self.parts["act"](plan, obs, is_first, explore=explore)

    @torch.no_grad()
    def compute_action(
        self, plan: Plan, obs: dict[str, Tensor], is_first: Tensor, *, explore: bool
    ) -> tuple[Tensor, Plan]:
        """What :meth:`act_step` gives, in one traceable piece."""
        with self._cast():
            # (N, ...) -> (N, 1, ...): acting is observing a sequence of one
            one = {key: x.unsqueeze(1) for key, x in obs.items()}
            nothing = plan.action.unsqueeze(1)
            states = self.model.observe(self.model.initial(len(is_first)), one, nothing, is_first.unsqueeze(1))
            state = tree.index(states, (slice(None), 0))
            if self.config.behaviour == "policy":
                features = self.model.features(state)
                return self.policy.explored(features) if explore else self.policy(features).mode(), plan
            plan, _ = self.planners[explore](self.objective, state, plan, is_first)
            if self.ramp.shortens:
                counts = torch.arange(plan.mean.shape[1], device=self.device) < self.ramp.depth
                plan = dataclasses.replace(plan, mean=torch.where(counts.unsqueeze(-1), plan.mean, 0.0))
        return self.model.allowed(state, plan.action), plan

    def _doubt(self, state: Latent, action: Tensor) -> Tensor:
        """(B, ...), (B, A) -> (B,) what the Q-functions differ in."""
        return q_spread(self.model, self.value.every)(state, self.model.allowed(state, action))

    def _discount_of(self, state: Latent) -> Tensor:
        """(B, ...) -> (B,) that of its task."""
        assert self.discounts is not None
        return self.discounts[self.model.task_of(state)]

    @property
    def proposer(self) -> nn.Module:
        """The policy, for planners."""
        return self.policy

    def worth(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), Q of a sample of the policy."""
        return policy_value(self.policy, self.value.value)(features)

    def _chance(self, step: Step) -> Tensor:
        """(N, A) uniform actions."""
        rows, size = len(step.reward), self.spec.action.size
        if self.spec.action.kind == "discrete":
            return F.one_hot(torch.randint(size, (rows,), device=self.device), size).float()
        action = torch.rand(rows, size, device=self.device) * 2 - 1
        return action * self.model.takes[step.obs["task"]] if self.spec.tasks else action

    def memory(self, carry: Carry) -> dict[str, Tensor]:
        """(N, ...) what was planned for the step just acted on: zeros where nothing was."""
        return {"expert": self._expert(carry.plan)} if self._keeps else {}

    def _expert(self, plan: Plan) -> Tensor:
        """(N, E) of a plan's first action."""
        if self.spec.action.kind == "discrete":
            return plan.mean[:, 0]
        return torch.cat([plan.mean[:, 0], plan.std[:, 0]], -1)

    # Learning

    def learn(self, batch: Batch) -> Update:
        """One update: model and Q-functions, then the policy. Where it is captured in a CUDA graph, the result is
        overwritten by the next call."""
        if batch.reward.shape[1] < 2:
            raise MisfitError("TD-MPC2 learns from steps and what follows them; take replay.length of at least 2")
        if self._keeps and "expert" not in batch.memory:
            raise MisfitError('policy_target="planner" learns from plans that replay keeps; take replay.memory="steps"')
        if self.value_optimizer is not None and batch.reward.shape[1] <= self.config.steps:
            raise MisfitError(
                f"targets count {self.config.steps} rewards, so sequences need {self.config.steps + 1} steps, got "
                f"{batch.reward.shape[1]}; take a larger replay.length"
            )
        if self.value_optimizer is not None and batch.weight is not None:
            raise MisfitError("Q-functions that learn apart give no priorities; take replay.sampler='uniform'")
        batch, every = dataclasses.replace(batch, index=None), self.config.reanalyse_every
        with self.streams["learn"]:
            fresh: dict[str, Tensor] = {}
            if self._keeps and every and self.calls % every == 0:
                fresh = {"expert": self.steps["reanalyse"](batch)}
                batch = dataclasses.replace(batch, memory=fresh)
            self.calls += 1
            return dataclasses.replace(self.steps["learn"](batch), memory=fresh)

    @torch.no_grad()
    def reanalyse_step(self, batch: Batch) -> Tensor:
        """(B, T, E) what was planned, the first rows planned anew, as at the beginning of an episode."""
        rows, steps = min(self.config.reanalyse_rows, len(batch.reward)), batch.reward.shape[1]
        obs = {key: x[:rows].flatten(0, 1) for key, x in batch.obs.items()}
        begin = torch.ones(rows * steps, dtype=torch.bool, device=self.device)
        blank = tree.to(self.planners[True].initial(rows * steps, self.spec.action.size), self.device)
        _, plan = self.parts["act"](blank, obs, begin, explore=True)
        return torch.cat([self._expert(plan).unflatten(0, (rows, steps)), batch.memory["expert"][rows:]])

    def learn_step(self, batch: Batch) -> Update:
        """An update between two uses of the random stream: tensors in, tensors out, in place where it learns."""
        scale_before = self.spread.scale.clone()
        total, states, metrics, priority = self.parts["model"](batch)
        self.optimizer.backward(total)
        model = self.optimizer.step(torch.isfinite(total))
        self.model.bound()
        healthy = model["healthy"]
        if self.value_optimizer is not None:
            loss, states, told = self.parts["value"](batch)
            self.value_optimizer.backward(loss)
            healthy = self.value_optimizer.step(healthy & torch.isfinite(loss))["healthy"]
            total, metrics = total + loss, metrics | told
        loss, told = self.parts["policy"](states, batch.memory | self._done(batch))
        self.policy_optimizer.backward(loss)
        policy = self.policy_optimizer.step(healthy & torch.isfinite(loss))
        healthy = policy["healthy"]
        moves = healthy & (self.updates % self.config.slow_every == 0)
        self.value.track(moves)
        self.model.track(moves)
        with torch.no_grad():
            self.spread.scale.copy_(torch.where(healthy, self.spread.scale, scale_before))
            self.updates.add_(1)
            self.ramp.follow(self.updates)
        metrics = metrics | told | self.skipped.count(healthy) | {
            "loss/total": total.detach(),
            "loss/policy": loss.detach(),
            "update/grad_norm": model["grad_norm"],
            "update/policy_grad_norm": policy["grad_norm"],
        }
        return Update(metrics=metrics, memory={}, priority=priority)

    def compute_model_loss(self, batch: Batch) -> tuple[Tensor, Latent, dict[str, Tensor], Tensor | None]:
        """In one traceable piece: the number that the model minimises, and Q-functions unless they learn apart, the
        imagined states (B, T) without gradient, metrics, and where replay is prioritised the new priorities (B, T)."""
        priority = None
        with self._cast():
            unrolled = self.model.unroll(batch)
            losses = self.model.losses(batch, unrolled)
            metrics = self._told_of_ends(batch, unrolled.predicted)
            if self.value_optimizer is None:
                more, priority, told = self.critic.joint(batch, unrolled)
                losses, metrics = losses | more, metrics | told
        for name, loss in losses.items():
            metrics[f"loss/{name}"] = loss.detach().mean()
            if self.config.ceiling:
                steps = loss.shape[1]
                sums = loss.detach().sum(1, keepdim=True) * ((steps - 1) / steps)
                losses[name] = torch.where(sums <= self.config.ceiling, loss, 0.0)
            if batch.weight is not None:
                losses[name] = losses[name] * batch.weight.unsqueeze(1)
        total = torch.stack([self.scales[name] * loss.mean() for name, loss in losses.items()]).sum()
        return total, tree.detach(unrolled.states), metrics, priority

    def _done(self, batch: Batch) -> dict[str, Tensor]:
        """(B, T, ...) what was done, and how much of a step it counts, where the policy learns from that."""
        if self.config.policy_target != "advantage":
            return {}
        return {"done": batch.action, "counts": self.model.step_weights(batch.is_first, rho=1.0)}

    def compute_value_loss(self, batch: Batch) -> tuple[Tensor, Latent, dict[str, Tensor]]:
        """In one traceable piece, where Q-functions learn apart: the number that they minimise, the encoded states
        (B, 1) that they learn in, and metrics."""
        with self._cast():
            loss, states, metrics = self.critic.apart(batch)
        return self.scales["value"] * loss, states, metrics

    @torch.no_grad()
    def _told_of_ends(self, batch: Batch, predicted: Latent) -> dict[str, Tensor]:
        """Share of terminal steps and F1 of their prediction, where there is one; the share is what it learns from."""
        if self.model.ends is None:
            return {}
        inside = ~batch.is_first[:, 1:]
        true, said = batch.is_terminal[:, 1:] & inside, (self.model.end_logit(predicted) > 0) & inside
        hits = (true & said).sum()
        f1 = 2 * hits / (true.sum() + said.sum()).clamp(min=1)
        return {"end/rate": true.float().mean(), "end/f1": f1}

    def compute_policy_loss(self, states: Latent, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """In one traceable piece: the cost of the policy less the bonus of its entropy, weighted by rho^t, over states
        (B, T), and metrics. The cost is -Q/S (TD-MPC2, eq. 4), or how far it is from what was planned, over the spread
        of that. Its gradient is taken to the policy alone."""
        features = self.model.features(states)
        with self._cast():
            if self._keeps:
                cost, entropy = self.policy.taught(features, memory["expert"])
                metrics = {"policy/gap": cost.detach().mean()}
            elif self.states is not None and self.config.policy_target == "advantage":
                advantage = self.critic.advantage(features, memory["done"])
                weight = self.states.weight(advantage) * memory["counts"]
                distance, entropy = self.policy.cloned(features, memory["done"])
                cost, metrics = weight * distance, {"policy/advantage": advantage.mean()}
            else:
                worth, entropy = self.policy.judged(partial(self.value.value, drop=True), features)
                cost, metrics = -worth, {"value/mean": worth.detach().mean()}
        scale = self.spread(cost[:, 0])
        loss = cost / scale - self.config.policy.bonus * entropy
        power = torch.arange(loss.shape[1], device=loss.device)
        metrics |= {"value/scale": scale.clone(), "policy/entropy": entropy.detach().mean()}
        return self.config.policy_scale * (loss.mean(0) * self.model.config.rho**power).mean(), metrics

    def _cast(self) -> AbstractContextManager[Any]:
        return precision.computing(self.precision, self.device)

    def report(self, batch: Batch) -> dict[str, Tensor]:
        """{}: nothing is decoded."""
        return {}

    # Keeping

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments, scale, random stream and counters."""
        moments = {
            f"{kind}.{name}": x
            for kind, optimizer in self._optimizers.items() for name, x in optimizer.state_dict().items()
        }
        return joined(
            model=self.modules.state_dict(), optim=moments,
            rng={name: stream.state for name, stream in self.streams.items()},
            count={"updates": self.updates, **self.skipped.state_dict()},
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies in place: compiled callables and flat buffers stay valid."""
        groups = parted(state)
        self.modules.load_state_dict(groups["model"])
        for kind, optimizer in self._optimizers.items():
            optimizer.load_state_dict({name: groups["optim"][f"{kind}.{name}"] for name in optimizer.state_dict()})
        for name in self.streams:
            self.streams[name] = Stream(state=groups["rng"][name].clone(), device=self.device)
        self.skipped.load_state_dict(groups["count"])
        self.updates.copy_(groups["count"]["updates"])
        self.ramp.follow(self.updates)
        self.calls = int(self.updates)

    @property
    def _optimizers(self) -> dict[str, Adam]:
        apart = {} if self.value_optimizer is None else {"value": self.value_optimizer}
        return {"model": self.optimizer, "policy": self.policy_optimizer, **apart}


def discount_of(steps: int) -> float:
    """TD-MPC2's discount for episodes of so many decisions.

    >>> [round(discount_of(steps), 3) for steps in (100, 125, 200, 250, 500, 1000)]
    [0.95, 0.96, 0.975, 0.98, 0.99, 0.995]
    """
    share = steps / 5
    return min(max((share - 1) / share, 0.95), 0.995)
