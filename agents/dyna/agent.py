"""Dyna: a policy and Q-functions learned from real transitions and from short dreams that branch off them (Sutton
1990; MBPO, Janner et al. 2019). What learns from them is a rule (``rules/``), what is pessimistic about them lies in
``pessimism.py`` and ``adversary.py``; every paper of docs/offline.md is a setting of these, with dreams or without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.adversary import Adversary, AdversaryConfig
from worldmodel.agents.dyna.branches import BranchConfig, branch, chosen
from worldmodel.agents.dyna.buffer import Ring, episode_returns, flatten, marks
from worldmodel.agents.dyna.pessimism import (
    ConservatismConfig,
    Halt,
    HaltConfig,
    InconsistencyConfig,
    conservatism,
    inconsistency,
    unable,
)
from worldmodel.agents.dyna.policy import PolicyConfig
from worldmodel.agents.dyna.rules.base import Learner, Rule
from worldmodel.agents.dyna.rules.soft import SoftConfig
from worldmodel.agents.values.critics import CriticsConfig
from worldmodel.agents.values.reach import ReachConfig
from worldmodel.errors import MisfitError, check_range
from worldmodel.models.ensemble import EnsembleModelConfig, read_vectors, vector_axes
from worldmodel.nn.normed import Standardise
from worldmodel.nn.optim import Adam, without_gradient
from worldmodel.nn.state import Skipped, joined, parted
from worldmodel.protocols import Fits, Likely, Solved, Uncertain, Varies
from worldmodel.rng import Stream
from worldmodel.tree import struct
from worldmodel.types import ArraySpec, Batch, EnvSpec, Step, Transitions, Update


@struct
class Carry:
    """What acting remembers of N environments: nothing but a random stream."""

    rng: Tensor


@dataclass(frozen=True, kw_only=True)
class DynaConfig:
    """A rule that learns from real and dreamed transitions, and what doubt costs; the defaults are MBPO's where they do
    not depend on the task."""

    model: Any = field(default_factory=EnsembleModelConfig)
    """``build(spec) -> WorldModel`` whose features are the observation; None: no dreams, model-free."""
    branch: BranchConfig = field(default_factory=BranchConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rule: Any = field(default_factory=SoftConfig)
    """``build(actor, action) -> Rule``: how policy and critics learn from transitions."""
    value: Any = field(default_factory=CriticsConfig)
    """``build(feature_dim, action) -> Critics``."""
    reach: ReachConfig = field(default_factory=lambda: ReachConfig(detector="none"))
    """What the last state of a branch costs where it is far from all that the critic was corrected at."""
    batch_size: int = 256
    """Transitions of an update."""
    real_ratio: float = 0.05
    """Share of them that are real."""
    penalty: float = 0.0
    """lambda of MOPO: what the model's disagreement costs in reward."""
    halt: HaltConfig = field(default_factory=HaltConfig)
    """MOReL: where dreams end for doubt."""
    inconsistency: InconsistencyConfig = field(default_factory=InconsistencyConfig)
    """MOBILE: what doubt costs in targets."""
    conservatism: ConservatismConfig = field(default_factory=ConservatismConfig)
    """CQL, COMBO: what unusual actions are worth."""
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    """RAMBO: a model that turns against the policy."""
    standardise: bool = False
    """Policy and critics read features less their mean, by their standard deviation, of the data held at the first
    update."""
    reward_unit: Literal["raw", "returns"] = "raw"
    """As they are, or a thousandth of the difference between the best and the worst episode held at the first update,
    where whole episodes are held in their order (--data; IQL, LEQ). Values are then in this unit too."""
    clone_first: int = 0
    """Updates of the policy by cloning, before the first one (RAMBO)."""
    discount: float = 0.99
    lr: float = 3e-4
    policy_lr: float = 3e-4
    """Of the policy and its temperature."""
    policy_lr_ends: int = 0
    """Updates in which ``policy_lr`` falls to 0 along half a cosine; 0: it stays."""
    policy_delay: int = 1
    """Updates of the critics to one of the policy, with which their slow copies move (TD3)."""
    refit_every: int = 0
    """Updates between two fits of a model that ``Fits``; 0: it is fitted once (offline)."""
    recent: int = 100_000
    """Real transitions held, the last ones that replay gave: what the model is fitted to and dreams begin from."""
    first: int = 1000
    """Real transitions seen before the first fit and the first update."""
    holdout: float = 0.2
    """Share of real transitions that the model is tested on and never learns from."""
    acting: Any = None
    """How exploring chooses: a sample of the policy (None), or the best of several by rollouts of the model, by a
    ``planning.selector.CandidateSelector`` (COPlanner). Evaluation by mode is the plain policy always."""
    dreaming: Any = None
    """How each action of a branch is chosen: likewise."""
    patch: Literal["none", "edge", "random"] = "none"
    """A test of causes, for models that are ``Solved``: the optimum in place of what the critic says of states beyond
    reach, or of as many random ones."""

    def __post_init__(self) -> None:
        check_range(self, 1, "batch_size", "recent", "first", "policy_delay")
        check_range(self, 0, "penalty", "lr", "policy_lr", "policy_lr_ends", "refit_every", "clone_first")
        check_range(self, 0, "real_ratio", "discount", "holdout", high=1)
        if self.halt.coefficient and self.discount == 1:
            raise ValueError("halt needs a discount below 1: the state that dreams halt in goes on for ever")
        pressed = self.batch_size - self.real if self.conservatism.over == "dreams" else self.batch_size
        if self.conservatism.weight and not (self.real and pressed):
            raise ValueError(
                f"conservatism lifts real actions and presses drawn ones down, over={self.conservatism.over!r}, but of "
                f"{self.batch_size} rows {self.real} are real; choose another real_ratio or over='mix'"
            )
        if self.model is None and (self.acting is not None or self.dreaming is not None):
            raise ValueError("acting and dreaming choose by rollouts of a model, and model is None")
        if self.reach.detector == "ensemble" and getattr(self.value, "members", 2) < 2:
            raise ValueError("the detector ensemble needs a critic with at least 2 members")

    @property
    def real(self) -> int:
        """Rows of a batch that were lived; the others were dreamed."""
        return self.batch_size if self.model is None else round(self.real_ratio * self.batch_size)

    def build(self, spec: EnvSpec, *, device: torch.device | str = "cpu", seed: int = 0) -> Dyna:
        return Dyna(self, spec, torch.device(device), seed)


class Dyna:
    """Implements ``Agent[Carry]``. It knows the world by the batches it is given, of which it holds the recent ones."""

    memory_spec: dict[str, ArraySpec] = {}  # noqa: RUF012

    def __init__(self, config: DynaConfig, spec: EnvSpec, device: torch.device, seed: int) -> None:
        """Raises: MisfitError for actions or observations of another kind, and for a model without what was asked."""
        self.config, self.spec, self.device = config, spec, device
        self.axes = vector_axes(spec)
        size = sum(math.prod(array.shape) for array in spec.obs.values())
        with Stream(seed=seed):
            self.model: Any = None if config.model is None else config.model.build(spec).to(device)
            self.actor = config.policy.build(size, spec.action).to(device)
            self.rule: Rule = config.rule.build(self.actor, spec.action).to(device)
            self.value: Any = config.value.build(size, spec.action).to(device)
            self.reach = config.reach.build(size).to(device)
        self.halt = Halt(config.halt, config.discount).to(device)
        known: object = self.model
        for asked, ability, because in (
            (config.penalty, Uncertain, f"penalty={config.penalty}"), (config.halt.coefficient, Uncertain, "halt"),
            (config.inconsistency.weight, Varies, "inconsistency"), (config.adversary.every, Likely, "adversary"),
            (config.acting is not None and config.acting.doubts, Uncertain, "acting"),
            (config.dreaming is not None and config.dreaming.doubts, Uncertain, "dreaming"),
        ):
            if asked and not isinstance(known, ability):
                raise MisfitError(unable(known, ability, because))
        if self.rule.unrolls and not 0 < config.real < config.batch_size:
            raise MisfitError(
                f"{type(self.rule).__name__} unrolls a model from dreamed rows of a batch, beside real ones, and there "
                f"are {config.real} real ones of {config.batch_size}; give it a model and a real_ratio between 0 and 1"
            )
        if config.patch != "none" and not isinstance(known, Solved):
            raise MisfitError(f"patch={config.patch!r} needs a model whose optimum is known")
        self.seen = Ring(config.recent, size, spec.action.size).to(device)
        longest = max(config.branch.length, config.branch.grown)
        dreams = config.branch.rows * longest * config.branch.keep if self.model is not None else 1
        self.dreams = Ring(dreams, size, spec.action.size).to(device)
        worths, choices = self.rule.groups()
        self.optimizer = Adam([
            ([*self.value.parameters(), *self.reach.parameters(), *worths], config.lr),
            ([*self.actor.parameters(), *choices], config.policy_lr),
        ])
        parts = {"actor": self.actor, "rule": self.rule, "value": self.value, "reach": self.reach, "halt": self.halt}
        self.modules = nn.ModuleDict(cast(dict[str, nn.Module], parts))
        if self.model is not None:
            self.modules["model"] = self.model
        self.adversary = Adversary(config.adversary, self.model) if config.adversary.every else None
        self._judge = without_gradient(self.value)
        self.learner = Learner(
            actor=self.actor, value=self.value, judge=self._judge, model=self.model, place=self._placed,
            discount=config.discount, real=config.real,
        )
        self.updates, self.told = 0, False
        self.skipped = Skipped(device)
        self.unit = torch.ones((), device=device)
        self._turn, self._pace = (torch.ones((), device=device, dtype=kind) for kind in (torch.bool, torch.float32))
        self.streams = {"learn": Stream(seed=seed * 1000 + 1, device=device)}
        self.steps: dict[str, Callable[..., Any]] = {"learn": self.learn_step, "act": self.act_step}
        self.parts: dict[str, Callable[..., Any]] = {"losses": self.losses, "act": self.compute_action}

    # Acting

    def initial(self, num_envs: int, *, seed: int = 0) -> Carry:
        return Carry(rng=Stream(seed=seed, device=self.device).state)

    def act(self, carry: Carry, step: Step, *, explore: bool) -> tuple[Tensor, Carry]:
        """(N, A) a sample of the policy, or its mode."""
        obs = tree.to(step.obs, self.device)
        with Stream(state=carry.rng, device=self.device) as stream:
            action = self.steps["act"](obs, explore=explore)
        return action, Carry(rng=stream.state)

    def act_step(self, obs: dict[str, Tensor], *, explore: bool) -> Tensor:
        """Observations (N, ...) to actions (N, A)."""
        return self.parts["act"](obs, explore=explore)

    @torch.no_grad()
    def compute_action(self, obs: dict[str, Tensor], *, explore: bool) -> Tensor:
        """What :meth:`act_step` gives, in one traceable piece."""
        x = read_vectors(obs, self.axes)
        if explore and self.config.acting is not None:
            return chosen(self.config.acting, self.model, self.sample, self.worth, self._placed(x))[0]
        return self.rule.act(self.actor(x), explore=explore)

    def sample(self, x: Tensor) -> Tensor:
        """Features (N, F) to (N, A) as exploring acts without a selector."""
        return self.rule.act(self.actor(x), explore=True)

    def worth(self, x: Tensor) -> Tensor:
        """Features (N, F) to (N,), value of states by the policy's mode."""
        return self.value.target(x, self.actor(x).mode())

    def memory(self, carry: Carry) -> dict[str, Tensor]:
        return {}

    # Learning

    @property
    def capacity(self) -> int:
        return self.config.recent

    @property
    def needed(self) -> int:
        return min(self.config.first, self.config.recent)

    @torch.no_grad()
    def hold(self, batch: Batch) -> None:
        """Take in transitions that are all new; from the first time on, none is taken from what ``learn`` is given."""
        self.told = True
        data, real, mark = self._transitions(batch)
        self.seen.add(tree.index(data, real), mark[real])

    def learn(self, batch: Batch) -> Update:
        """Fit and dream where it is time, and update everything once, as soon as ``first`` transitions were seen. Who
        was never told to ``hold`` any takes in what is given."""
        with self.streams["learn"]:
            if not self.told:
                self.absorb(batch)
            if self.seen.total < self.needed:
                return Update(metrics={}, memory={})
            metrics = self.prepare()
            c = self.config
            self._turn.fill_(self.updates % c.policy_delay == 0)
            if c.policy_lr_ends:
                self._pace.fill_(0.5 + 0.5 * math.cos(math.pi * min(1.0, self.updates / c.policy_lr_ends)))
            update = self.steps["learn"](self.draw())
            self.updates += 1
        return Update(metrics=update.metrics | metrics, memory={})

    @torch.no_grad()
    def absorb(self, batch: Batch) -> None:
        """Hold the batch's transitions among the recent ones."""
        data, real, mark = self._transitions(batch)
        # what leads from one episode into another gives its place to the real one before it: shapes stay fixed
        rows = torch.arange(len(real), device=real.device)
        at = torch.where(real, rows, -1).cummax(0).values
        at = torch.where(at < 0, real.int().argmax(), at)
        self.seen.add(tree.index(data, at), mark[at])

    def _transitions(self, batch: Batch) -> tuple[Transitions, Tensor, Tensor]:
        """Of a batch, rewards in the agent's unit; which of them are real, and which models are tested on."""
        data, real = flatten(batch, read_vectors(batch.obs, self.axes))
        mark = marks(batch.index, batch.reward.shape[1], self.config.holdout, len(real)).to(real.device)
        return replace(data, reward=data.reward * self.unit), real, mark

    def prepare(self) -> dict[str, Tensor]:
        """Fit the model and dream, where it is time; what is to be logged of it."""
        c, found = self.config, {}
        if self.updates == 0:
            found = self.begin()
        if self.model is None:
            return found
        due = self.updates == 0 or (c.refit_every and self.updates % c.refit_every == 0)
        if due and isinstance(self.model, Fits):
            held = slice(0, len(self.seen))
            tested = self.seen.mark[held] > 0.5
            if not 0 < int(tested.sum()) < len(tested):  # so few that one side is empty
                tested = torch.arange(len(tested), device=tested.device) % 5 == 0
            fit = self.model.fit(self.seen.at(held), tested)
            found |= {f"model/{name}": x for name, x in fit.items()}
            if self.adversary is not None:
                self.adversary.begin(self.model)
        if due and c.halt.coefficient:
            found |= self.measure_doubt()
        if self.adversary is not None and self.updates and self.updates % c.adversary.every == 0:
            changed = self.adversary.round(self.learner, self.seen.draw)
            found |= {f"adversary/{name}": x for name, x in changed.items()}
        if self.updates % c.branch.every == 0 or not len(self.dreams):
            found |= self.dream(c.branch.at(self.updates))
        return found

    def begin(self) -> dict[str, Tensor]:
        """Before the first update: measure rewards and features, and clone, where any of this is asked for."""
        found: dict[str, Tensor] = {}
        if self.config.reward_unit == "returns":
            returns = episode_returns(self.seen.everything())
            if len(returns) > 1 and float(spread := returns.max() - returns.min()) > 0:
                self.unit.copy_(1000 / spread)
                cast(Tensor, self.seen.reward).mul_(self.unit)
            found["reward/unit"] = 1 / self.unit
        if self.config.standardise:
            x = self.seen.everything().x
            for part in (self.actor, self.rule, self.value):
                for module in cast(nn.Module, part).modules():
                    if isinstance(module, Standardise):
                        module.measure(x)
        for _ in range(self.config.clone_first):
            data = self.seen.draw(self.config.batch_size)
            error = losses.cloning_error(action=self.actor(data.x).sample(), done=data.action).mean()
            self.optimizer.backward(error)
            self.optimizer.step(torch.isfinite(error))
            found["actor/cloned"] = error.detach()
        if self.config.clone_first:
            self.optimizer.forget()
        return found

    @torch.no_grad()
    def measure_doubt(self) -> dict[str, Tensor]:
        """How unsure the model is of the data, which decides where dreams halt."""
        held = self.seen.everything()
        parts = zip(held.x.split(4096), held.action.split(4096))
        doubt = [self.model.disagreement(self._placed(x), action) for x, action in parts]
        self.halt.measure(torch.cat(doubt), held.reward)
        return {"halt/threshold": self.halt.threshold.clone(), "halt/price": self.halt.price.clone()}

    def dream(self, length: int) -> dict[str, Tensor]:
        """One round of branches from recent real states; scalars for the log."""
        c = self.config
        return branch(
            self.learner, self.seen.draw(c.branch.rows).x, length, self.dreams.add, penalty=c.penalty,
            halt=self.halt if c.halt.coefficient else None,
            choose=lambda state: chosen(c.dreaming, self.learner.model, self._dreamt, self.worth, state),
        )

    def _dreamt(self, x: Tensor) -> Tensor:
        """Features (N, F) to actions (N, A) of dreams: the policy's samples, whatever its rule explores by."""
        return self.actor(x).sample()

    def draw(self) -> Transitions:
        """(batch_size, ...) real and dreamed transitions."""
        c = self.config
        # room is for rounds of the longest branches: while they are short, it holds more than are wanted
        kept = c.branch.rows * c.branch.at(self.updates) * c.branch.keep
        wanted = ((self.seen, c.real, None), (self.dreams, c.batch_size - c.real, kept))
        parts = [ring.draw(n, newest) for ring, n, newest in wanted if n]
        return tree.cat(parts) if len(parts) > 1 else parts[0]

    def learn_step(self, data: Transitions) -> Update:
        """One update from (N, ...) transitions: tensors in, tensors out, in place where it learns."""
        total, metrics, target = self.parts["losses"](data)
        self.optimizer.backward(total)
        turns, paces = (torch.ones_like(x) for x in (self._turn, self._pace))
        stepped = self.optimizer.step(
            torch.isfinite(total), turns=(turns, self._turn) if self.config.policy_delay > 1 else None,
            paces=(paces, self._pace) if self.config.policy_lr_ends else None,
        )
        healthy = stepped["healthy"]
        self.value.track(healthy & self._turn)
        self.rule.track(self.learner, healthy & self._turn)
        self.reach.remember(data.x, target, healthy)
        metrics = metrics | {"loss/total": total.detach(), "update/grad_norm": stepped["grad_norm"]}
        metrics |= self.skipped.count(healthy)
        return Update(metrics=metrics, memory={})

    def losses(self, data: Transitions) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """In one traceable piece: the number to minimise, metrics, and the critic's targets (N,)."""
        target, seen = self._target(data)
        terms, found = self.rule.losses(self.learner, data, target)
        terms["reach"] = self.reach.loss(data.x)
        if self.config.conservatism.weight:
            terms["conservatism"] = conservatism(self.learner, data, self.config.conservatism)
        total = torch.stack([loss.mean() for loss in terms.values()]).sum()
        metrics = seen | found | {f"loss/{name}": loss.detach().mean() for name, loss in terms.items()}
        return total, metrics, target

    @torch.no_grad()
    def _target(self, data: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's targets (N,), and what the states that they bootstrap from look like."""
        c = self.config
        value, every = self.rule.bootstrap(self.learner, data.next_x)
        spread = every.std(0, unbiased=False)
        metrics = {"value/bootstrap": value.mean(), "reach/edge_share": data.edge.mean()}
        inside = 1 - data.edge
        for name, mask in (("edge", data.edge), ("inside", inside)):
            metrics[f"value/std_{name}"] = _mean_where(spread, mask)
        if c.reach.detector != "none":
            score = self.reach.score(data.next_x, spread)
            cost = self.reach.cost(score)
            value = losses.reach_aware(value=value, cost=cost, edge=data.edge)
            metrics |= {
                "reach/score_edge": _mean_where(score, data.edge), "reach/score_inside": _mean_where(score, inside),
                "reach/cost": _mean_where(cost, data.edge), "reach/flagged": _mean_where((cost > 0).float(), data.edge),
            }
        if c.patch != "none":
            value, metrics["reach/patched_share"] = self._patched(data.next_x, value)
        target = losses.critic_target(
            reward=data.reward, terminal=data.terminal, next_value=value, discount=c.discount
        )
        if c.inconsistency.weight:
            doubt = inconsistency(self.learner, data, c.inconsistency.samples)
            target = losses.penalised_reward(reward=target, doubt=doubt, weight=c.inconsistency.weight)
            metrics["value/inconsistency"] = _mean_where(doubt, (doubt > 0).float())
        return target, metrics | {"value/target_max": target.max()}

    def _patched(self, x: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Values with the optimum put in place, and the share of them where it was."""
        where = self.model.beyond(x, self.config.branch.length)
        if self.config.patch == "random":
            where = where[torch.rand(len(where), device=where.device).argsort()]
        return torch.where(where, self.model.optimum(x, self.config.discount), value), where.float().mean()

    def _placed(self, x: Tensor) -> Any:
        """Observations (N, n) to states of the model: it observes sequences of one."""
        sizes = [math.prod(array.shape) for array in self.spec.obs.values()]
        parts = zip(self.spec.obs.items(), x.split(sizes, -1))
        obs = {key: part.view(len(x), 1, *array.shape) for (key, array), part in parts}
        before = x.new_zeros(len(x), 1, self.spec.action.size)
        is_first = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
        seen = self.model.observe(self.model.initial(len(x)), obs, before, is_first)
        return tree.index(seen, (slice(None), 0))

    # Looking and keeping

    def report(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments, transitions held, random stream and counters."""
        return joined(
            model=self.modules.state_dict(), seen=self.seen.state_dict(), dreams=self.dreams.state_dict(),
            optim=self.optimizer.state_dict(), rng={"learn": self.streams["learn"].state},
            adversary={} if self.adversary is None else self.adversary.optimizer.state_dict(),
            count={
                "updates": torch.tensor(self.updates), "told": torch.tensor(self.told), "unit": self.unit,
                **self.skipped.state_dict(),
            },
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies in place."""
        groups = parted(state)
        self.modules.load_state_dict(groups["model"])
        for name, ring in (("seen", self.seen), ("dreams", self.dreams)):
            ring.load_state_dict(groups[name])
            ring.restore()
        self.optimizer.load_state_dict(groups["optim"])
        if self.adversary is not None:
            self.adversary.optimizer.load_state_dict(groups["adversary"])
        self.streams["learn"] = Stream(state=groups["rng"]["learn"].clone(), device=self.device)
        self.skipped.load_state_dict(groups["count"])
        self.unit.copy_(groups["count"]["unit"])
        self.updates, self.told = int(groups["count"]["updates"]), bool(groups["count"]["told"])

    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """Everything but transitions, real or dreamed, and random numbers: the model is not fitted again until it is
        time, and what features are standardised by stays."""
        groups, mine = parted(state), parted(self.state_dict())
        groups |= {group: mine[group] for group in ("seen", "dreams", "rng")}
        groups["count"]["told"] = mine["count"]["told"]
        self.load_state_dict(joined(**groups))


def _mean_where(x: Tensor, mask: Tensor) -> Tensor:
    """() mean of x where mask (N,) is 1; 0 where it is nowhere."""
    return (x * mask).sum() / mask.sum().clamp(min=1.0)
