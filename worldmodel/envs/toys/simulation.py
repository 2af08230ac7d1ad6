"""The futures of toys: exact, since chance enters a game only where an episode begins."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.envs.toys.base import ToyConfig, make_task
from worldmodel.specs import EnvSpec


class ToySimulation:
    """Implements ``specs.Simulation``. A time limit does not end a game here: it goes on."""

    def __init__(self, config: ToyConfig) -> None:
        self._spec = config.build().spec
        # sprites are drawn when a task is made, and the same few sizes are asked for again and again
        self._task = functools.lru_cache(maxsize=8)(lambda rows: make_task(config, rows))

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def capture(self, envs: Sequence[Any]) -> dict[str, np.ndarray]:
        """(N, ...) of ``Toy``s: what their rules keep."""
        states = [env.batch.task.state for env in envs]
        return {key: np.concatenate([state[key] for state in states]) for key in states[0]}

    def advance(
        self, state: dict[str, np.ndarray], action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """(M, ...) and (M, A) to the next state, reward (M,) and is_terminal (M,)."""
        task = self._task(len(action))
        for key, values in task.state.items():
            values[...] = state[key]
        reward, _, is_terminal = task.advance(action)
        return {key: values.copy() for key, values in task.state.items()}, reward.copy(), is_terminal.copy()
