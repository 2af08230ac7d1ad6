"""Several tasks as one environment: observations of one width, actions of one size, and which task it is."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from worldmodel.envs.dmc import DMCConfig
from worldmodel.errors import EnvError
from worldmodel.specs import ActionSpec, ArraySpec, Clones, Env, EnvSpec, EnvStep, TaskSpec

KEY = "task"
"""The observation that says which."""


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig:
    """Environment i of a pool has task i, and after the last the first again.

    What is observed is "vector", all numbers of a task by key, filled up with zeros, and "task", its index. Actions
    have the size of the largest; a task with fewer ignores the rest.

    >>> MultitaskConfig(tasks=("cup_catch", "cartpole_balance")).name
    'tasks/cup_catch+cartpole_balance'
    """

    env: Any = field(default_factory=lambda: DMCConfig(obs="proprio"))
    """An EnvConfig with a ``task`` that is filled in, whose observations are vectors and whose actions are bounded."""
    tasks: tuple[str, ...] = ("cartpole_balance", "cup_catch")

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be different ones, got {' '.join(self.tasks) or 'none'}")

    @property
    def name(self) -> str:
        return f"tasks/{'+'.join(self.tasks)}"

    def build(self, index: int = 0) -> MultitaskEnv:
        """Make environment ``index`` of a pool. Raises EnvError where a task cannot be one of several."""
        specs, at = _specs(self), index % len(self.tasks)
        env: Env = replace(self.env, task=self.tasks[at]).build(index)
        return (ClonedMultitaskEnv if isinstance(env, Clones) else MultitaskEnv)(self, env, at, specs)


@functools.lru_cache(maxsize=8)
def _specs(config: MultitaskConfig) -> tuple[EnvSpec, ...]:
    """Of every task, each looked at once in a process."""
    found = []
    for task in config.tasks:
        env = replace(config.env, task=task).build(0)
        spec = env.spec
        env.close()
        if any(array.is_image or array.classes for array in spec.obs.values()):
            raise EnvError(f"{spec.name} is seen by more than vectors; several tasks share vectors alone: set env.obs")
        if spec.action.kind != "continuous" or not spec.action.is_bounded:
            raise EnvError(f"{spec.name} has actions without bounds, or choices; several tasks share bounded numbers")
        found.append(spec)
    return tuple(found)


class MultitaskEnv:
    """Implements ``specs.Env``."""

    def __init__(self, config: MultitaskConfig, env: Env, at: int, specs: tuple[EnvSpec, ...]) -> None:
        self.env, self._at = env, at
        tasks = tuple(
            TaskSpec(name=name, obs=width(spec.obs), action=spec.action.size, max_steps=spec.max_steps)
            for name, spec in zip(config.tasks, specs)
        )
        self._width = max(task.obs for task in tasks)
        lengths = [task.max_steps for task in tasks]
        self._spec = EnvSpec(
            name=config.name,
            obs={
                KEY: ArraySpec(shape=(), dtype="int64", classes=len(tasks)),
                "vector": ArraySpec(shape=(self._width,), dtype="float32"),
            },
            action=ActionSpec(kind="continuous", size=max(task.action for task in tasks)),
            repeat=specs[0].repeat, max_steps=None if None in lengths else max(n for n in lengths if n), tasks=tasks,
        )

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def reset(self, seed: int | None = None) -> EnvStep:
        return self._padded(self.env.reset(seed))

    def step(self, action: np.ndarray) -> EnvStep:
        return self._padded(self.env.step(action[: self.env.spec.action.size]))

    def render(self) -> np.ndarray | None:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def _padded(self, step: EnvStep) -> EnvStep:
        vector = np.zeros(self._width, np.float32)
        seen = np.concatenate([np.ravel(step.obs[key]) for key in sorted(step.obs)])
        vector[: len(seen)] = seen
        return replace(step, obs={KEY: np.array(self._at, np.int64), "vector": vector})


class ClonedMultitaskEnv(MultitaskEnv):
    """Where a task can be cloned, so can it as one of several. Adds ``specs.Clones``."""

    def get_state(self) -> dict[str, Any]:
        assert isinstance(self.env, Clones)
        return {"env": self.env.get_state(), KEY: self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises EnvError for a state of another task."""
        assert isinstance(self.env, Clones)
        if state.get(KEY) != self._at:
            raise EnvError(f"this is no state of task {self._at} of {self._spec.name}; it must be of the same task")
        self.env.set_state(state["env"])


def width(obs: dict[str, ArraySpec]) -> int:
    """Numbers of all vectors together."""
    return sum(int(np.prod(array.shape)) for array in obs.values())
