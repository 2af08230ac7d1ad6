"""Gymnasium environments that break their contract on order, registered when this module is imported."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Poisoned(gymnasium.Env[np.ndarray, Any]):
    """Observations become NaN after ``healthy`` steps in all; in the first ``lives`` environments that are made."""

    observation_space: Any = spaces.Box(-1.0, 1.0, (3,))
    action_space: Any = spaces.Discrete(2)
    made = 0

    def __init__(self, healthy: int = 30, lives: int = 10**9) -> None:
        Poisoned.made += 1
        self.left, self.t = healthy if Poisoned.made <= lives else 10**9, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left, self.t = self.left - 1, self.t + 1
        return np.full(3, 0.1 if self.left > 0 else np.nan, np.float32), 1.0, self.t == 12, False, {}


class Speaks(Poisoned):
    """Observes text."""

    observation_space = spaces.Text(4)


class Juggles(Poisoned):
    """Takes two actions at once."""

    action_space = spaces.MultiDiscrete([2, 3])


for _name, _made in {"Poisoned": Poisoned, "Speaks": Speaks, "Juggles": Juggles}.items():
    gymnasium.register(f"broken/{_name}-v0", _made)
