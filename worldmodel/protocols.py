"""The seams: signatures only. Small abilities are runtime-checkable and feature-detected by ``isinstance``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec, Plan, Prediction, Step, Transitions, Update

S = TypeVar("S")
C = TypeVar("C")


class WorldModel(Protocol[S]):
    """A latent dynamics model. ``S`` is its own ``tree.struct``, opaque to everybody else."""

    feature_dim: int
    loss_scales: dict[str, float]
    """One weight for each name that ``loss`` returns."""

    def initial(self, batch_size: int) -> S:
        """The state before anything was seen, (B, ...)."""
        ...

    def observe(self, state: S, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> S:
        """Filter a sequence: (B, ...) state and (B, T, ...) data to states (B, T, ...). Acting is the same call with
        T = 1. Where ``is_first``, state and previous action are forgotten."""
        ...

    def step(self, state: S, action: Tensor) -> S:
        """One imagined step, (B, ...) and (B, A): the recurrence alone."""
        ...

    def predict(self, previous: S, action: Tensor, state: S) -> Prediction:
        """Reward and continuation of arriving in ``state``, over any leading axes: what does not recur is predicted
        for a whole rollout at once, so it stays out of ``step``."""
        ...

    def features(self, state: S) -> Tensor:
        """(..., F) what policies, values and heads read."""
        ...

    def loss(self, batch: Batch, state: S) -> tuple[dict[str, Tensor], S]:
        """Named losses, each (B, T), and the posterior states (B, T, ...), with gradient."""
        ...


@runtime_checkable
class Decodes(Protocol):
    """Can draw what a state looks like; enables dream videos."""

    def decode(self, state: Any) -> dict[str, Tensor]:
        """Image keys, float in [0, 1], (..., h, w, C)."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """Can keep its state in replay, compactly, and come back from it."""

    @property
    def memory_spec(self) -> dict[str, ArraySpec]: ...
    def pack(self, state: Any) -> dict[str, Tensor]:
        """State to storable tensors of ``memory_spec``, any leading axes."""
        ...

    def unpack(self, memory: dict[str, Tensor]) -> Any: ...


@runtime_checkable
class Uncertain(Protocol):
    """Knows how unsure it is; enables COPlanner and penalties."""

    def disagreement(self, state: Any, action: Tensor) -> Tensor:
        """(B,)"""
        ...


@runtime_checkable
class Fits(Protocol):
    """Is learned by rounds of its own over all data, not by a share in every update."""

    def fit(self, data: Transitions, holdout: Tensor) -> dict[str, Tensor]:
        """Learn from (N,) transitions until those of ``holdout`` (N,) bool are predicted no better; scalars for the
        log."""
        ...


@runtime_checkable
class Varies(Protocol):
    """Has several answers to what comes next, and gives them apart; enables penalties of what they differ in."""

    def outcomes(self, state: Any, action: Tensor, count: int) -> Tensor:
        """(count, E, ..., F) features drawn from each of E answers."""
        ...


@runtime_checkable
class Likely(Protocol):
    """Knows how likely an outcome is and what its data cost it, both with gradient; enables adversaries."""

    def log_prob(self, state: Any, action: Tensor, arrived: Any) -> Tensor:
        """(...) log-density of arriving in ``arrived``, reward included."""
        ...

    def misfit(self, data: Transitions, bounds_scale: float) -> Tensor:
        """() what fitting minimises, of (N, ...) transitions; ``bounds_scale`` pulls limits of variances together."""
        ...

    def parameters(self) -> Iterator[Any]: ...


@runtime_checkable
class Solved(Protocol):
    """A model whose optimum and reach are known in closed form: what value learners are held against."""

    def optimum(self, x: Tensor, discount: float) -> Tensor:
        """(..., F) features -> (...) the best return."""
        ...

    def beyond(self, x: Tensor, steps: int) -> Tensor:
        """(..., F) -> (...) bool: not to be reached from where its data starts in fewer than ``steps`` actions."""
        ...


@runtime_checkable
class Forks(Protocol):
    """Can share a prefix (a KV cache) among candidates instead of copying it."""

    def fork(self, state: Any, n: int) -> Any:
        """(B, ...) to the state of B n candidates, row b's i-th in row b n + i: for ``step``, ``features``,
        ``predict``, ``fork`` and ``trim``, but not to be indexed, since what is shared has B rows."""
        ...


@runtime_checkable
class Trims(Protocol):
    """Has states with caches that only ``observe`` and ``step`` read: a rollout keeps one state with them, not all."""

    def trim(self, state: Any) -> Any:
        """The state without them: ``features``, ``predict`` and ``decode`` give the same."""
        ...


class ValueLearner(Protocol):
    """A critic of states. Module-like: its parameters are trained by the agent's optimiser."""

    def value(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), the best estimate."""
        ...

    def target(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), what returns bootstrap from."""
        ...

    def loss(self, features: Tensor, return_: Tensor) -> Tensor:
        """(..., F), (...) -> (...); the return is a constant, features may carry gradient."""
        ...

    def track(self, healthy: Tensor) -> None:
        """After an update: move slow copies, unless () bool ``healthy`` is False."""
        ...


@runtime_checkable
class Truncates(Protocol):
    """A value learner that tells the end of a rollout, beyond which nothing was seen, from the states inside."""

    def truncated(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), what returns bootstrap from where a rollout was cut off."""
        ...


class ActionDistribution(Protocol):
    """What a policy says about an action."""

    def sample(self) -> Tensor:
        """(..., A)."""
        ...

    def mode(self) -> Tensor:
        """(..., A)."""
        ...

    def log_prob(self, action: Tensor, /) -> Tensor:
        """(..., A) -> (...)."""
        ...

    def entropy(self) -> Tensor:
        """(...) in nats."""
        ...


class Policy(Protocol):
    """A policy over latent features."""

    def __call__(self, features: Tensor, /) -> ActionDistribution:
        """(..., F) -> distribution over (..., A)."""
        ...


class PlanningObjective(Protocol[S]):
    """What a planner sees of the world: how good sequences are, what the policy would do, and, for trees, single
    steps. It may be held by many planners and keeps nothing between calls."""

    @property
    def model(self) -> WorldModel[S]: ...
    @property
    def action(self) -> ActionSpec: ...
    @property
    def discount(self) -> float: ...
    @property
    def policy(self) -> Policy | None: ...
    @property
    def value(self) -> Callable[[Tensor], Tensor] | None:
        """(..., F) -> (...)."""
        ...

    def score(self, state: S, action: Tensor) -> Tensor:
        """(B, ...) state and (B, N, H, A) candidates -> (B, N) float32, higher is better, always finite."""
        ...

    def propose(self, state: S, count: int, horizon: int) -> Tensor:
        """(B, count, H, A) sequences that the policy chooses in the model. Raises UserError where there is none."""
        ...


class Planner(Protocol):
    """Chooses actions by search, without learning: a frozen dataclass of numbers, batched over B, that keeps nothing.

    What it remembers from one decision to the next goes in and comes out as a ``Plan``. All its noise has fixed shapes
    and comes from torch's default generator, so a ``Stream`` around the call decides it, and a call is one graph.
    """

    def initial(self, batch_size: int, action_size: int) -> Plan:
        """A plan that knows nothing, on the CPU."""
        ...

    def __call__(
        self, objective: PlanningObjective[S], state: S, plan: Plan, first: Tensor
    ) -> tuple[Plan, dict[str, Tensor]]:
        """Plan from ``state`` (B, ...).

        Args: plan: what the last call returned. first: (B,) bool; these rows forget their plan.
        Returns: the new plan, and "value" (B,) the score of the best sequence found, "evaluations" () model steps an
            environment, where a step with its gradient counts 3; and what else the planner tells, each (B,).
        Raises: UserError where the objective cannot serve it: another kind of action, no policy, no value.
        """
        ...


class Agent(Protocol[C]):
    """Acts and learns. ``C`` is the carry of N environments, a pytree with leading N."""

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """What replay shall keep beside each step; {} for nothing."""
        ...

    def initial(self, num_envs: int, *, seed: int = 0) -> C:
        """A carry that knows nothing. It holds its own random stream, so evaluating disturbs no training."""
        ...

    def act(self, carry: C, step: Step, *, explore: bool) -> tuple[Tensor, C]:
        """Actions (N, A) for the observations of now; ``explore=False`` takes the mode."""
        ...

    def memory(self, carry: C) -> dict[str, Tensor]:
        """(N, ...) what replay shall keep of the step just acted on."""
        ...

    def learn(self, batch: Batch) -> Update:
        """One update; its result is good until the agent is called again."""
        ...

    def report(self, batch: Batch) -> dict[str, Tensor]:
        """What a human wants to see of a batch: "truth/KEY" and "model/KEY" (rows, T, h, w, C) in [0, 1], the first
        half filtered, the rest dreamed; scalars under "report/"."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that learning needs to go on bit for bit, flat: "model/...", "optim/...", "rng/...", ..."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Imagines(Protocol):
    """An agent whose world model others may use: dream environments, export."""

    @property
    def model(self) -> WorldModel[Any]: ...


@runtime_checkable
class Reacts(Protocol):
    """An agent that acts by a policy of its model's features, not by search; enables export."""

    @property
    def actor(self) -> Policy: ...


@runtime_checkable
class Judges(Protocol):
    """An agent with a policy and a critic of its model's features: what proposes to a planner, and what its sequences
    are worth where they end."""

    @property
    def proposer(self) -> Policy: ...
    def worth(self, features: Tensor) -> Tensor:
        """(..., F) -> (...), value of states by the policy."""
        ...

    @property
    def discount(self) -> float:
        """Of its returns, per decision."""
        ...


@runtime_checkable
class Compiles(Protocol):
    """An agent that keeps what is pure in tensors apart, so that it can be compiled and captured: fixed shapes, no
    reading on the host, no branch on data, random numbers from the default generator, ``state_dict`` of live tensors.
    It calls these functions through the tables, whose entries others may replace by faster ones."""

    steps: dict[str, Callable[..., Any]]
    """"learn", "act" and "report": a whole call, between entering and leaving a random stream."""
    parts: dict[str, Callable[..., Any]]
    """What steps consist of besides backward passes: each traceable as one graph."""


@runtime_checkable
class Holds(Protocol):
    """An agent that keeps what was lived itself, and learns from that instead of from batches that are drawn for it."""

    capacity: int
    """Transitions that it keeps; older ones go."""
    needed: int
    """Transitions without which it does not learn."""

    def hold(self, batch: Batch) -> None:
        """Take in (N, T, ...) steps of N environments that follow each other: every transition of a run or of data is
        given once, in its order."""
        ...


@runtime_checkable
class Adopts(Protocol):
    """An agent with a part of its state that another run must not take over, such as transitions that it holds, or
    moments of weights that it does not learn."""

    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """Take over what was learned from the ``state_dict`` of an agent of the same parts: weights, optimisers,
        normalisers. Raises KeyError or RuntimeError where its parts are others."""
        ...


@runtime_checkable
class Wants(Protocol):
    """An agent that may not begin with nothing learned."""

    @property
    def wanted(self) -> str:
        """Why it wants another run's weights, as the beginning of a sentence; empty where it does not."""
        ...


class EnvPool(Protocol):
    """N environments stepped together. After ``is_last`` the next ``step`` ignores that row's action and returns the
    first observation of a new episode (reward 0, ``is_first``): final observations are never lost."""

    @property
    def spec(self) -> EnvSpec: ...
    @property
    def num_envs(self) -> int: ...
    def reset(self, seed: int) -> Step: ...
    def step(self, action: Tensor) -> Step:
        """(N, A) float32 on any device -> Step on the CPU, whose tensors are the caller's to keep."""
        ...

    def send(self, action: Tensor) -> None:
        """Begin such a step and do not wait for it where it can run beside us."""
        ...

    def receive(self) -> Step:
        """The step that was begun."""
        ...

    def render(self, index: int = 0) -> Any:
        """uint8 (h, w, 3) numpy array of environment ``index``, or None."""
        ...

    def get_state(self) -> list[dict[str, Any]] | None:
        """One state per environment where all of them can be cloned, else None."""
        ...

    def set_state(self, state: list[dict[str, Any]]) -> None: ...
    def stats(self) -> dict[str, float]:
        """Counters for the log: "restarts", "truncated_by_fault"."""
        ...

    def close(self) -> None:
        """Returns within 5 seconds, always."""
        ...


class Replay(Protocol):
    """What was lived. Counters are decisions, reset steps included."""

    def add(self, step: Step, action: Tensor, memory: Mapping[str, Tensor]) -> None:
        """Append one step of all N environments; ``action`` (N, A) was chosen after seeing ``step``."""
        ...

    def sample(self) -> Batch: ...
    def peek(self, *, rows: int | None = None, length: int | None = None) -> Batch:
        """A batch for looking: uniform, and it disturbs neither random stream nor queue."""
        ...

    def read(self, first: int, last: int) -> Batch:
        """(N, last - first, ...) steps of every environment, in their order: [first, last) of those ever added."""
        ...

    def write_back(self, batch: Batch, update: Update) -> None:
        """Store fresh memory and priorities over the steps of ``batch``; rows overwritten since are skipped."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a batch can be drawn."""
        ...

    @property
    def total_steps(self) -> int:
        """Decisions ever added, over all environments."""
        ...

    def __len__(self) -> int:
        """Steps held now."""
        ...

    def stats(self) -> dict[str, float]: ...
    def save(self, folder: Path, previous: Path | None = None) -> None:
        """Write everything, RNG included, into ``folder``; unchanged files are hard-linked from ``previous``."""
        ...

    def load(self, folder: Path, *, salvage: bool = False) -> int:
        """Take over what ``save`` wrote. With ``salvage`` damaged parts are left out; returns the steps lost so."""
        ...

