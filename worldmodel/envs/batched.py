"""N environments that are one object: ``specs.BatchEnv`` with the checks of its contract."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from worldmodel.envs.host import Contract, Failure, check_values
from worldmodel.envs.rows import check_states, explain_build
from worldmodel.errors import EnvError
from worldmodel.specs import BatchEnv, BatchStep, BuildsBatch, EnvConfig, EnvSpec

_FLAGS = ("is_first", "is_last", "is_terminal")


class BatchedRows:
    """A ``specs.BatchEnv`` whose every step is checked. Its rows do not fail one by one: any fault is an EnvError."""

    def __init__(self, config: BuildsBatch, num_envs: int) -> None:
        """Raises EnvError where it cannot be built."""
        self._config = cast(EnvConfig, config)
        self._is_closed = self._has_begun = self._has_shapes = False
        self._action = np.zeros((num_envs, 0), np.float32)
        try:
            self._env: BatchEnv = config.build_batch(num_envs)
            Contract(self._env.spec)
        except Exception as error:  # whatever it is belongs to the environment
            raise EnvError(explain_build(self._config, 0, Failure.of(error))) from error
        self._spec, self._num_envs = self._env.spec, num_envs
        if self._env.num_envs != num_envs:
            raise EnvError(f"{self._spec.name}: build_batch({num_envs}) made {self._env.num_envs} environments")

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self, seed: int) -> BatchStep:
        """Start all episodes. Raises EnvError."""
        step = self._checked(self._do("reset", seed))
        self._has_begun = True
        return step

    def send(self, action: np.ndarray) -> None:
        """(N, A) float32, for :meth:`receive` to step with. Raises EnvError before a reset."""
        self._check_begun()
        self._action = action

    def receive(self) -> BatchStep:
        """Step with what was sent. Raises EnvError for whatever goes wrong."""
        return self._checked(self._do("step", self._action))

    def render(self, index: int = 0) -> np.ndarray | None:
        """A picture of environment ``index``, or None."""
        self._check_begun()
        return self._do("render", index)

    def get_state(self) -> list[dict[str, Any]]:
        """One state per row, as the environment gives them."""
        self._check_begun()
        return self._do("get_state")

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Go on from ``get_state``. Raises EnvError for states that do not fit."""
        check_states(self._spec, self._num_envs, state, keys=())
        self._do("set_state", state)
        self._has_begun = True

    def stats(self) -> dict[str, float]:
        """Nothing is ever restarted here."""
        return {"restarts": 0.0, "truncated_by_fault": 0.0}

    def close(self) -> None:
        """End the environments."""
        if not self._is_closed:
            self._is_closed = True
            self._env.close()

    def _do(self, method: str, *given: Any) -> Any:
        if self._is_closed:
            raise EnvError(f"the pool of {self._config.name} is closed; make another")
        try:
            return getattr(self._env, method)(*given)
        except EnvError:
            raise
        except Exception as error:  # whatever it is belongs to the environment
            raise EnvError(f"{self._spec.name} failed in {method}: {Failure.of(error).sentence}") from error

    def _checked(self, step: BatchStep) -> BatchStep:
        """The step with a float32 reward. Raises EnvError for wrong shapes and types (looked at once) and values."""
        if not self._has_shapes:
            self._check_shapes(step)
            self._has_shapes = True
        step.reward = np.asarray(step.reward, np.float32)
        for key, array in self._spec.obs.items():
            check_values(self._spec.name, key, step.obs[key], array.classes)
        if not np.isfinite(step.reward).all():
            raise EnvError(f"{self._spec.name}: the rewards are {step.reward.tolist()}, expected finite numbers")
        return step

    def _check_shapes(self, step: BatchStep) -> None:
        n, name = self._num_envs, self._spec.name
        if sorted(step.obs) != list(self._spec.obs):
            raise EnvError(f"{name}: observations must be {list(self._spec.obs)}, got {sorted(step.obs)}")
        for key, array in self._spec.obs.items():
            shape, dtype = (n, *array.shape), np.dtype(array.dtype)
            if step.obs[key].shape != shape or step.obs[key].dtype != dtype:
                given = step.obs[key]
                raise EnvError(f"{name}: obs[{key!r}] must be {dtype} {shape}, got {given.dtype} {given.shape}")
        if np.shape(step.reward) != (n,):
            raise EnvError(f"{name}: reward must be ({n},), got {np.shape(step.reward)}")
        for flag in _FLAGS:
            value = getattr(step, flag)
            if value.shape != (n,) or value.dtype != bool:
                raise EnvError(f"{name}: {flag} must be bool ({n},), got {value.dtype} {value.shape}")

    def _check_begun(self) -> None:
        if self._is_closed:
            raise EnvError(f"the pool of {self._config.name} is closed; make another")
        if not self._has_begun:
            raise EnvError(f"the pool of {self._config.name} has not begun; call reset(seed) first")
