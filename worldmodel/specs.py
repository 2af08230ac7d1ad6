"""What an environment offers and expects, in numpy terms. Torch-free, so that environment workers start fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Shape and type of one array, without batch or time axes."""

    shape: tuple[int, ...]
    dtype: str
    """numpy name; torch-only types such as "bfloat16" are allowed for replay memory."""
    classes: int | None = None
    """Number of classes when the (integer) array holds class indices."""

    @property
    def is_image(self) -> bool:
        """Images are uint8 (height, width, channels); everything else is a vector."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.classes is None


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """Actions are float32 vectors of ``size`` everywhere above the environment: in [-1, 1] where the environment's
    bounds are finite, or a one-hot of ``size`` choices. The adapter converts; nobody else does."""

    kind: Literal["continuous", "discrete"]
    size: int
    is_bounded: bool = field(default=True, repr=False)
    """False where a continuous action has a number without finite bounds, which the adapter passes as it is."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One of several tasks that look alike to an agent; ``obs["task"]`` is the index."""

    name: str
    obs: int
    """Numbers of ``obs["vector"]`` that are its own; the others are 0."""
    action: int
    """Numbers of an action that it takes; the others mean nothing."""
    max_steps: int | None = None
    """As :attr:`EnvSpec.max_steps`."""


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What one environment looks like to an agent."""

    name: str
    """Full name for results, renderer included: "dmc/walker_walk/gl"."""
    obs: dict[str, ArraySpec]
    """By key, sorted by key."""
    action: ActionSpec
    repeat: int = 1
    """Simulator frames per decision."""
    max_steps: int | None = None
    """Decisions after which the environment truncates, where it is known."""
    reference: dict[str, float] = field(default_factory=dict)
    """Known returns of this task, for instance {"random": 0.1, "optimum": 1.0}."""
    tasks: tuple[TaskSpec, ...] = ()
    """Where it is one of several."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "obs", dict(sorted(self.obs.items())))


@dataclass(slots=True, kw_only=True)
class EnvStep:
    """What an environment says at one time step. Truncation is ``is_last and not is_terminal``."""

    obs: dict[str, np.ndarray]
    reward: float = 0.0
    """Received on arriving at ``obs``; 0 at ``is_first``."""
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False


class Env(Protocol):
    """One environment. ``step`` after ``is_last`` is an error: the pool resets."""

    @property
    def spec(self) -> EnvSpec: ...
    def reset(self, seed: int | None = None) -> EnvStep:
        """Start an episode; a seed reseeds everything the environment draws from, None goes on with its streams."""
        ...

    def step(self, action: np.ndarray) -> EnvStep:
        """Apply one action, (A,) float32."""
        ...

    def render(self) -> np.ndarray | None:
        """An RGB picture of now, uint8 (h, w, 3), for videos; None where there is none."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Clones(Protocol):
    """Ability of an environment: its whole state, random streams included, as plain data; enables exact resume."""

    def get_state(self) -> dict[str, Any]:
        """JSON-able values, bytes and numpy arrays only; restoring it elsewhere continues bit for bit."""
        ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class EnvConfig(Protocol):
    """A frozen dataclass that names one environment; picklable, and importable without torch."""

    @property
    def name(self) -> str:
        """As in :attr:`EnvSpec.name`."""
        ...

    def build(self, index: int = 0) -> Env:
        """Make environment number ``index`` of a pool. Raises EnvError with a sentence."""
        ...


@runtime_checkable
class Evaluates(Protocol):
    """What an EnvConfig also offers whose agents are judged elsewhere than they learn, with the same spaces."""

    def evaluation(self) -> EnvConfig: ...


def evaluation_env(config: EnvConfig) -> EnvConfig:
    """Where agents that learn in ``config`` are evaluated: there, but for configs that say otherwise."""
    return config.evaluation() if isinstance(config, Evaluates) else config


@dataclass(slots=True, kw_only=True)
class BatchStep:
    """What N environments say at one time step, in numpy: the fields of EnvStep with a leading N."""

    obs: dict[str, np.ndarray]
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray


class BatchEnv(Protocol):
    """N environments that step together in one call, with the reset rule of ``protocols.EnvPool``: the step after
    ``is_last`` ignores that row's action and returns the first observation of a new episode."""

    @property
    def spec(self) -> EnvSpec: ...
    @property
    def num_envs(self) -> int: ...
    def reset(self, seed: int) -> BatchStep: ...
    def step(self, action: np.ndarray) -> BatchStep:
        """(N, A) float32; the returned arrays are the caller's to keep."""
        ...

    def render(self, index: int = 0) -> np.ndarray | None: ...
    def get_state(self) -> list[dict[str, Any]]: ...
    def set_state(self, state: list[dict[str, Any]]) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class BuildsBatch(Protocol):
    """Ability of an EnvConfig: its environments exist as one vectorised object."""

    def build_batch(self, num_envs: int) -> BatchEnv: ...


class Simulation(Protocol):
    """The futures of environments of one configuration: from any states of theirs, by any actions, many at once. The
    environments themselves are not stepped."""

    @property
    def spec(self) -> EnvSpec: ...
    def capture(self, envs: Sequence[Any]) -> dict[str, np.ndarray]:
        """(N, ...) named arrays: the states that running environments are in now."""
        ...

    def advance(
        self, state: dict[str, np.ndarray], action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """(M, ...) and (M, A) to the next state, reward (M,) and is_terminal (M,). There is no time limit."""
        ...


@runtime_checkable
class Simulates(Protocol):
    """Ability of an EnvConfig: its environments can be simulated; enables planning with the truth."""

    def simulation(self) -> Simulation: ...
