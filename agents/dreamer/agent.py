"""Dreamer: a world model learned from replay, an actor and a critic learned in its imagination (Hafner et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.agents.dreamer.actor import ActorConfig
from worldmodel.agents.dreamer.losses import (
    ReturnNormalizer,
    dynamics_loss,
    imagined_targets,
    reinforce_loss,
    replay_value_loss,
    selection_kl,
)
from worldmodel.agents.values.twohot import TwoHotValueConfig
from worldmodel.errors import UserError, check_range
from worldmodel.models.latent import LatentModelConfig
from worldmodel.nn import precision
from worldmodel.nn.optim import LaProp, without_gradient
from worldmodel.nn.precision import Precision
from worldmodel.nn.state import Skipped, joined, parted
from worldmodel.protocols import Decodes, Remembers, Truncates, Uncertain
from worldmodel.rng import Stream
from worldmodel.rollout import follow, imagine, trimmed
from worldmodel.tree import struct
from worldmodel.types import ArraySpec, Batch, EnvSpec, Step, Trajectory, Update
from worldmodel.uncertainty import doubt


@struct
class Carry:
    """What acting remembers of N environments."""

    state: Any
    """(N, ...) latent state of the world model."""
    prev_action: Tensor
    """(N, A)."""
    rng: Tensor
    """State of this carry's own random stream: who holds another carry disturbs nobody."""


@dataclass(frozen=True, kw_only=True)
class DreamerConfig:
    """World model + imagination actor-critic; the defaults are those of the paper (2024)."""

    model: Any = field(default_factory=LatentModelConfig)
    """``build(spec) -> WorldModel``."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    value: Any = field(default_factory=TwoHotValueConfig)
    """``build(feature_dim) -> ValueLearner``."""
    imagination: int = 15
    """H, imagined steps from every start."""
    starts: Literal["every", "window"] = "every"
    """Where dreams begin: in every posterior state of the batch, or at the ends of windows of real steps that are
    filtered anew from the initial state (STORM, Drama): ``Batch.starts`` where replay draws such, else cut from the
    batch."""
    windows: int = 64
    """Windows that are cut from a batch."""
    window: int = 8
    """Real steps in each of these."""
    horizon: float = 333.0
    """Discount = 1 - 1/horizon, per decision."""
    lam: float = 0.95
    """lambda of the returns."""
    learns: Literal["all", "model", "behaviour"] = "all"
    """What updates change: everything; the world model alone, and nothing is dreamed; or policy and critic in a world
    model that stays as it is, which is another run's (``--init``). The last two after each other are how agents learn
    from fixed data (Lu et al. 2022). A model that stays has no losses, and replay's priorities none to follow."""
    policy_scale: float = 1.0
    value_scale: float = 1.0
    replay_value_scale: float = 0.3
    """Weight of the critic loss on real sequences, which also shapes the representation; 0 switches it off."""
    return_rate: float = 0.01
    """Rate of the return normaliser."""
    lr: float = 4e-5
    warmup: int = 1000
    """Updates over which the learning rate rises from 0."""
    clip: float = 0.3
    """Adaptive gradient clipping: a tensor's gradient norm over its weight norm."""
    context: Literal["replay", "blank"] = "replay"
    """The state before a sequence of replay: the latents that replay remembers, which are as old as their last update
    (DreamerV3's replay context), or the initial state, and then replay remembers none. A model that changes quickly is
    better off without."""
    acting: Any = None
    """How exploring chooses: a sample of the policy (None), or the best of several, by a
    ``planning.selector.CandidateSelector`` (COPlanner). Evaluation by mode is the plain policy always."""
    dreaming: Any = None
    """How dreams choose: by samples of the policy (None), or by a ``planning.selector.DreamSelector``."""
    extrinsic: float = 1.0
    """Weight of the task's reward in what the behaviour learns from; the reward head learns in any case."""
    intrinsic: float = 0.0
    """Weight of the model's disagreement in it (Plan2Explore)."""
    precision: Precision = "auto"
    """Of matrix products and convolutions; "auto": bfloat16 on a GPU, float32 on a CPU. Parameters, norms, softmax, KL,
    two-hot, returns and losses are float32 always."""

    def __post_init__(self) -> None:
        check_range(self, 0, "lr", "warmup", "clip", "extrinsic", "intrinsic")
        check_range(self, 0, "lam", "return_rate", high=1)
        if self.imagination < 1:
            raise ValueError(f"imagination must be at least 1 step, got {self.imagination}")
        if self.windows < 1 or self.window < 1:
            raise ValueError(f"windows and window must be at least 1, got {self.windows} and {self.window}")
        if self.horizon <= 1:
            raise ValueError(f"horizon must be more than 1 step, got {self.horizon}")

    @property
    def weighs_doubt(self) -> bool:
        """Whether anything asks the model how unsure it is."""
        asks = self.acting is not None and self.acting.doubts
        return asks or (self.dreaming is not None and self.dreaming.selector.doubts) or self.intrinsic != 0

    def build(self, spec: EnvSpec, *, device: torch.device | str = "cpu", seed: int = 0) -> Dreamer:
        return Dreamer(self, spec, torch.device(device), seed)


class Dreamer:
    """Implements ``Agent[Carry]`` for any world model, actor and value learner."""

    def __init__(self, config: DreamerConfig, spec: EnvSpec, device: torch.device, seed: int) -> None:
        self.config, self.spec, self.device = config, spec, device
        self.precision: precision.Numbers = precision.chosen(config.precision, device)
        with Stream(seed=seed):
            self.model = config.model.build(spec).to(device)
            self.actor = config.actor.build(self.model.feature_dim, spec.action).to(device)
            self.value = config.value.build(self.model.feature_dim).to(device)
        self.normalizer = ReturnNormalizer(config.return_rate).to(device)
        self.modules = nn.ModuleDict(
            {"model": self.model, "actor": self.actor, "value": self.value, "norm": self.normalizer}
        )
        if config.learns == "behaviour":
            self.model.requires_grad_(False)
        learned = self.model if config.learns == "model" else self.modules
        self.optimizer = LaProp(learned.parameters(), lr=config.lr, clip=config.clip, warmup=config.warmup)
        # what a dream goes through when the policy learns by the gradient of its dynamics
        dynamics = config.actor.gradient == "dynamics"
        self._dreamer = without_gradient(self.model) if dynamics else self.model
        self._critic = without_gradient(self.value) if dynamics else self.value
        world: Any = self.model
        can_remember = config.context == "replay" and isinstance(world, Remembers)
        self._remembers: Remembers | None = world if can_remember else None
        self._is_uncertain = isinstance(world, Uncertain)
        if not self._is_uncertain and config.weighs_doubt:
            raise UserError(
                "acting, dreaming or intrinsic gives uncertainty a weight, but this world model has no disagreement; "
                "give it an ensemble (agent.model.disagreement = DisagreementConfig()), or take weights of 0"
            )
        self.discount = 1.0 - 1.0 / config.horizon
        behaviour = {
            "policy": config.policy_scale, "value": config.value_scale, "replay_value": config.replay_value_scale
        }
        self.scales = {
            "all": self.model.loss_scales | behaviour, "model": self.model.loss_scales, "behaviour": behaviour
        }[config.learns]
        self.skipped = Skipped(device)
        self.streams = {
            name: Stream(seed=seed * 1000 + i, device=device) for i, name in enumerate(("learn", "report"), 1)
        }
        self.steps: dict[str, Callable[..., Any]] = {
            "learn": self.learn_step, "act": self.act_step, "report": self.report_step
        }
        self.parts: dict[str, Callable[..., Any]] = {
            "losses": self.compute_losses, "optimizer": self.optimizer.apply, "act": self.compute_action
        }

    # Acting

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """What the world model wants kept beside each step: its latents, compactly."""
        return self._remembers.memory_spec if self._remembers else {}

    def initial(self, num_envs: int, *, seed: int = 0) -> Carry:
        """A carry that knows nothing; ``seed`` starts its random stream."""
        zero = torch.zeros(num_envs, self.spec.action.size, device=self.device)
        rng = Stream(seed=seed, device=self.device).state
        return Carry(state=self.model.initial(num_envs), prev_action=zero, rng=rng)

    def act(self, carry: Carry, step: Step, *, explore: bool) -> tuple[Tensor, Carry]:
        """(N, A) a sample of the policy, or its mode."""
        step = tree.to(step, self.device)
        with Stream(state=carry.rng, device=self.device) as stream:
            action, state = self.steps["act"](carry.state, carry.prev_action, step.obs, step.is_first, explore=explore)
        return action, Carry(state=state, prev_action=action, rng=stream.state)

    def act_step(
        self, state: Any, prev_action: Tensor, obs: dict[str, Tensor], is_first: Tensor, *, explore: bool
    ) -> tuple[Tensor, Any]:
        """Latent state (N, ...), action (N, A) and observations (N, ...) to the next action and state."""
        return self.parts["act"](state, prev_action, obs, is_first, explore=explore)

    @torch.no_grad()
    def compute_action(
        self, state: Any, prev_action: Tensor, obs: dict[str, Tensor], is_first: Tensor, *, explore: bool
    ) -> tuple[Tensor, Any]:
        """What :meth:`act_step` gives, in one traceable piece."""
        with self._cast():
            # (N, ...) -> (N, 1, ...): acting is observing a sequence of one
            one = {key: x.unsqueeze(1) for key, x in obs.items()}
            states = self.model.observe(state, one, prev_action.unsqueeze(1), is_first.unsqueeze(1))
            state = tree.index(states, (slice(None), 0))
            if not explore:
                return self.actor(self.model.features(state)).mode(), state
            if self.config.acting is None:
                return self._sample(self.model.features(state)), state
            return self.config.acting.select(self.model, self._sample, state, value=self.value.target)[0], state

    @property
    def wanted(self) -> str:
        """See ``protocols.Wants``."""
        kept = self.config.learns == "behaviour"
        return "agent.learns behaviour learns in a world model that is kept" if kept else ""

    @property
    def proposer(self) -> nn.Module:
        """The policy, for planners."""
        return self.actor

    def worth(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), what the critic says of states."""
        return self.value.value(features)

    def _sample(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., A) a sample of the policy."""
        return self.actor(features).sample()

    def memory(self, carry: Carry) -> dict[str, Tensor]:
        """(N, ...) the latents of the step just acted on."""
        return self._remembers.pack(carry.state) if self._remembers else {}

    # Learning

    def learn(self, batch: Batch) -> Update:
        """One update of all that learns: one sum of losses, one backward pass, one optimiser. Where the update is
        captured in a CUDA graph, the result is overwritten by the next call."""
        with self.streams["learn"]:
            return self.steps["learn"](dataclasses.replace(batch, index=None))

    def learn_step(self, batch: Batch) -> Update:
        """An update between two uses of the random stream: tensors in, tensors out, in place where it learns."""
        scale_before = self.normalizer.low.clone(), self.normalizer.high.clone()
        total, metrics, memory, priority = self.parts["losses"](batch)
        self.optimizer.backward(total)
        stepped = self.optimizer.step(torch.isfinite(total), apply=self.parts["optimizer"])
        healthy = stepped["healthy"]
        if self.config.learns != "model":
            self.value.track(healthy)
            self.normalizer.keep(healthy, *scale_before)
        metrics = metrics | {"loss/total": total.detach(), "update/grad_norm": stepped["grad_norm"]}
        metrics |= self.skipped.count(healthy)
        return Update(metrics=metrics, memory=memory, priority=priority)

    def compute_losses(
        self, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """In one traceable piece: the number to minimise, metrics, fresh latents and priorities (B, T)."""
        losses, metrics, states = self.losses(batch)
        total = self.total(losses)
        metrics = metrics | {f"loss/{name}": loss.detach().mean() for name, loss in losses.items()}
        memory = self._remembers.pack(tree.detach(states)) if self._remembers else {}
        return total, metrics, memory, losses["dyn"].detach() if "dyn" in losses else None

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The one number that is minimised; the names of losses and scales must agree."""
        if losses.keys() != self.scales.keys():
            raise ValueError(f"losses {sorted(losses)} and loss_scales {sorted(self.scales)} must have the same names")
        return torch.stack([self.scales[name] * loss.mean() for name, loss in losses.items()]).sum()

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """World model and behaviour, as far as they learn: named losses (B, T) ("replay_value": T-1; "policy" and
        "value" (W,), where dreams begin at the ends of windows), metrics, states with gradient."""
        losses, states = self._model_losses(batch)
        if self.config.learns == "model":
            return losses, {}, states
        every = self.config.starts == "every"
        if every:
            starts, is_terminal = tree.flatten_time(tree.detach(states)), batch.is_terminal.flatten()
        else:
            starts, is_terminal = self._window_ends(batch)
        behaviour, metrics, returns = self._imagination_losses(starts, is_terminal)
        losses |= {name: x.view_as(batch.reward) if every else x for name, x in behaviour.items()}
        unsure = self._doubt_on_replay(batch, states) if self._is_uncertain else None
        if unsure is not None:
            metrics["replay/disagreement"] = unsure[:, 1:].mean()
        # where no dream began in the batch's states, what the critic says of them
        bootstrap = returns.view_as(batch.reward) if every else self._judge(states)
        with self._cast():
            losses["replay_value"] = replay_value_loss(
                self.value,
                features=self.model.features(states),
                reward=self._mix(batch.reward, unsure),
                is_last=batch.is_last,
                is_terminal=batch.is_terminal,
                bootstrap=bootstrap,
                discount=self.discount,
                lam=self.config.lam,
            )
        return losses, metrics, states

    def _model_losses(self, batch: Batch) -> tuple[dict[str, Tensor], Any]:
        """Those of the world model, none where it stays as it is, and the states (B, T, ...) of the batch."""
        before = self._context(batch)
        if self.config.learns != "behaviour":
            with self._cast():
                return self.model.loss(batch, before)
        with torch.no_grad(), self._cast():
            return {}, self.model.observe(before, batch.obs, batch.prev_action, batch.is_first)

    def _cast(self) -> AbstractContextManager[Any]:
        return precision.computing(self.precision, self.device)

    @torch.no_grad()
    def _judge(self, states: Any) -> Tensor:
        """(B, T) what returns bootstrap from."""
        with self._cast():
            return self.value.target(self.model.features(states))

    @torch.no_grad()
    def _window_ends(self, batch: Batch) -> tuple[Any, Tensor]:
        """States (W, ...) at the ends of windows, filtered from the initial state, and which are terminal (W,)."""
        windows = batch.starts
        if windows is None:
            windows = self._cut_windows(batch)
        with self._cast():
            seen = self.model.observe(
                self.model.initial(windows.reward.shape[0]), windows.obs, windows.prev_action, windows.is_first
            )
        return tree.index(seen, (slice(None), -1)), windows.is_terminal[:, -1]

    def _cut_windows(self, batch: Batch) -> Batch:
        """Random stretches of the batch, (W, C, ...)."""
        c, device, (rows, time) = self.config, batch.reward.device, batch.reward.shape
        length = min(c.window, time)
        row = torch.randint(rows, (c.windows, 1), device=device)
        at = torch.randint(time - length + 1, (c.windows, 1), device=device) + torch.arange(length, device=device)
        return tree.index(dataclasses.replace(batch, context={}, index=None, weight=None), (row, at))

    def _imagination_losses(
        self, starts: Any, is_terminal: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Losses (N,) of policy and value, metrics, and the imagined return (N,) of every start (N, ...)."""
        c = self.config
        through = c.actor.gradient == "dynamics"
        with torch.set_grad_enabled(through), self._cast():
            dream, told = self._dream(starts)
            unsure = None
            if c.intrinsic:
                before = tree.index(dream.states, (slice(None), slice(None, -1)))
                unsure = doubt(self._dreamer, before, dream.action)
            reward = self._mix(dream.reward, unsure)
            # (N, H+1, F)
            features = self.model.features(dream.states)
            value = self._critic.target(features)
            if isinstance(self._critic, Truncates):
                value = torch.cat([value[:, :-1], self._critic.truncated(features[:, -1:])], 1)
            # the real start state is alive unless it was terminal
            alive = (~is_terminal).float().unsqueeze(1)
            continues = torch.cat([alive, dream.continues], 1) * self.discount
            return_, weight = imagined_targets(reward=reward, continues=continues, value=value, lam=c.lam)
            scale = self.normalizer(return_)
            advantage = (return_ - value[:, :-1]) / scale
        features, weight = features.detach(), weight.detach()
        with self._cast():
            policy = self.actor(features[:, :-1])
            if through:
                policy_loss = dynamics_loss(policy, advantage, c.actor.entropy)
            else:
                policy_loss = reinforce_loss(policy, dream.action, advantage, c.actor.entropy)
            value_loss = self.value.loss(features[:, :-1], return_)
        # (N, H) -> (N,)
        losses = {"policy": (weight * policy_loss).mean(1), "value": (weight * value_loss).mean(1)}
        return_, advantage = return_.detach(), advantage.detach()
        metrics = {
            "actor/entropy": policy.entropy().detach().mean(),
            "actor/advantage_std": advantage.std(),
            "value/mean": value.detach().mean(),
            "return/mean": return_.mean(),
            "return/scale": scale,
            "imagination/reward": dream.reward.detach().mean(),
            "imagination/continues": dream.continues.detach().mean(),
            **told,
        }
        if unsure is not None:
            metrics["imagination/disagreement"] = unsure.detach().mean()
        if told:
            metrics["select/kl"] = selection_kl(policy, dream.action, c.dreaming.steps)
            metrics["select/model_steps"] = torch.full((), c.dreaming.evaluations(c.imagination), device=self.device)
        return losses, metrics, return_[:, 0]

    def _dream(self, starts: Any) -> tuple[Trajectory[Any], dict[str, Tensor]]:
        """A rollout (N, H) of the policy, selected where that is configured, and what is told of the selection."""
        selector, horizon = self.config.dreaming, self.config.imagination
        if selector is None:
            return imagine(self._dreamer, self._sample, starts, horizon), {}
        dream, told = selector.imagine(self._dreamer, self._sample, starts, horizon, value=self._critic.target)
        return dream, {f"select/{name}": x for name, x in told.items()}

    @torch.no_grad()
    def _doubt_on_replay(self, batch: Batch, states: Any) -> Tensor:
        """(B, T) how unsure the model was of each step before it came; 0 of the first."""
        with self._cast():
            before = tree.index(states, (slice(None), slice(None, -1)))
            return F.pad(doubt(self.model, before, batch.prev_action[:, 1:]), (1, 0))

    def _mix(self, reward: Tensor, unsure: Tensor | None) -> Tensor:
        """(B, T) what the behaviour learns from: the task's rewards and the model's disagreement, weighted."""
        c = self.config
        reward = reward if c.extrinsic == 1 else c.extrinsic * reward
        return reward if unsure is None or not c.intrinsic else reward + c.intrinsic * unsure

    def _context(self, batch: Batch) -> Any:
        """The state before the batch's first step: what replay remembers of it, or nothing."""
        if batch.context and self._remembers:
            return self._remembers.unpack(batch.context)
        return self.model.initial(batch.reward.shape[0])

    # Looking

    def report(self, batch: Batch, *, observed: int | None = None, rows: int = 6) -> dict[str, Tensor]:
        """Open-loop prediction: filter ``observed`` steps (half the batch by default), then dream on with the real
        actions. "truth/KEY" and "model/KEY" (rows, T, h, w, C) in [0, 1], and "report/open_loop_mse_KEY"."""
        if not isinstance(self.model, Decodes):
            return {}
        observed = batch.reward.shape[1] // 2 if observed is None else observed
        with self.streams["report"]:
            return self.steps["report"](tree.index(batch, slice(rows)), observed)

    @torch.no_grad()
    def report_step(self, batch: Batch, observed: int) -> dict[str, Tensor]:
        """What :meth:`report` gives for the whole batch (B, T), between two uses of the random stream."""
        world: Any = self.model
        with self._cast():
            head = {key: x[:, :observed] for key, x in batch.obs.items()}
            before = self._context(batch)
            seen = world.observe(before, head, batch.prev_action[:, :observed], batch.is_first[:, :observed])
            dream = follow(world, tree.index(seen, (slice(None), -1)), batch.prev_action[:, observed:])
            states = tree.cat([trimmed(world, seen), tree.index(dream.states, (slice(None), slice(1, None)))], 1)
            decoded = world.decode(states)
        out: dict[str, Tensor] = {}
        for key, model in decoded.items():
            truth = batch.obs[key].float() / 255
            out |= {f"truth/{key}": truth, f"model/{key}": model}
            out[f"report/open_loop_mse_{key}"] = (model[:, observed:] - truth[:, observed:]).square().mean()
        return out

    # Keeping

    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """All of an agent that learned the same parts; of one that learned others, what it is and no moments."""
        groups, mine = parted(state), parted(self.state_dict())
        difference = tree.differing(groups["model"], mine["model"])
        if difference:
            raise RuntimeError(f"{difference} here")
        if groups["optim"]["mu"].shape != mine["optim"]["mu"].shape:
            groups["optim"] = mine["optim"]
        self.load_state_dict(joined(**groups))

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments, normalisers, random streams and counters."""
        return joined(
            model=self.modules.state_dict(), optim=self.optimizer.state_dict(),
            rng={name: stream.state for name, stream in self.streams.items()}, count=self.skipped.state_dict(),
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies in place: compiled callables and flat buffers stay valid."""
        groups = parted(state)
        self.modules.load_state_dict(groups["model"])
        self.optimizer.load_state_dict(groups["optim"])
        for name in self.streams:
            self.streams[name] = Stream(state=groups["rng"][name].clone(), device=self.device)
        self.skipped.load_state_dict(groups["count"])
