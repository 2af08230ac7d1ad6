"""Any environment whose images are the newest few of them, so that one observation shows motion."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from worldmodel.envs.dmc import DMCConfig
from worldmodel.errors import EnvError
from worldmodel.specs import Clones, Env, EnvSpec, EnvStep


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The images of the newest ``frames`` decisions, oldest first, one behind the other along the channels; at the
    beginning of an episode the first one, repeated.

    >>> StackConfig(env=DMCConfig(task="cup_catch"), frames=3).name
    'dmc/ball_in_cup_catch/gl/3frames'
    """

    env: Any = field(default_factory=DMCConfig)
    """An EnvConfig whose observations hold images."""
    frames: int = 3

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")

    @property
    def name(self) -> str:
        return f"{self.env.name}/{self.frames}frames"

    def build(self, index: int = 0) -> StackEnv:
        """Make environment ``index`` of a pool. Raises EnvError where nothing observed is an image."""
        env: Env = self.env.build(index)
        if not any(array.is_image for array in env.spec.obs.values()):
            env.close()
            raise EnvError(f"{self.env.name} has no images to stack; take it without StackConfig")
        return (ClonedStackEnv if isinstance(env, Clones) else StackEnv)(self, env)


class StackEnv:
    """Implements ``specs.Env``."""

    def __init__(self, config: StackConfig, env: Env) -> None:
        self.env, self._frames = env, config.frames
        inner = env.spec
        obs = {
            key: replace(array, shape=(*array.shape[:2], array.shape[2] * config.frames)) if array.is_image else array
            for key, array in inner.obs.items()
        }
        self._spec = replace(inner, name=config.name, obs=obs)
        self._seen: dict[str, deque[np.ndarray]] = {
            key: deque(maxlen=config.frames) for key, array in inner.obs.items() if array.is_image
        }

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def reset(self, seed: int | None = None) -> EnvStep:
        step = self.env.reset(seed)
        for key, seen in self._seen.items():
            seen.extend([step.obs[key]] * self._frames)
        return self._stacked(step)

    def step(self, action: np.ndarray) -> EnvStep:
        step = self.env.step(action)
        for key, seen in self._seen.items():
            seen.append(step.obs[key])
        return self._stacked(step)

    def render(self) -> np.ndarray | None:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def _stacked(self, step: EnvStep) -> EnvStep:
        images = {key: np.concatenate(list(seen), -1) for key, seen in self._seen.items()}
        return replace(step, obs=step.obs | images)


class ClonedStackEnv(StackEnv):
    """Where the environment can be cloned, so can it with its images. Adds ``specs.Clones``."""

    def get_state(self) -> dict[str, Any]:
        assert isinstance(self.env, Clones)
        return {"env": self.env.get_state(), "seen": {key: list(seen) for key, seen in self._seen.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises EnvError for a state of another environment."""
        assert isinstance(self.env, Clones)
        if state.get("seen", {}).keys() != self._seen.keys():
            raise EnvError(f"this is no state of {self._spec.name}; it must be of the same environment and frames")
        self.env.set_state(state["env"])
        for key, seen in self._seen.items():
            seen.clear()
            seen.extend(np.asarray(image) for image in state["seen"][key])
