"""The toys for everybody else: Gymnasium environments ``worldmodel/Catch-v0``, ``Glide-v0`` and ``Recall-v0``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from worldmodel.envs.toys.base import CourseName, DistractorName, TaskName, Toy, ToyConfig


class ToyGym(gymnasium.Env[np.ndarray, Any]):
    """One toy behind Gymnasium's interface; observations are the image alone.

    >>> import worldmodel.envs.toys
    >>> gymnasium.make("worldmodel/Catch-v0", size=64).observation_space.shape
    (64, 64, 3)
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(
        self, task: TaskName, size: int = 32, distractor: DistractorName = "none", delay: int = 8,
        render_mode: str | None = None, course: CourseName = "open",
    ) -> None:
        """The arguments of :class:`ToyConfig`."""
        self.toy = Toy(ToyConfig(task=task, size=size, distractor=distractor, delay=delay, course=course))
        self.render_mode = render_mode
        action = self.toy.spec.action
        self.observation_space = spaces.Box(0, 255, self.toy.spec.obs["image"].shape, np.uint8)
        is_discrete = action.kind == "discrete"
        self.action_space = (
            spaces.Discrete(action.size) if is_discrete else spaces.Box(-1.0, 1.0, (action.size,), np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; as Gymnasium asks, the first reset without a seed takes a random one."""
        super().reset(seed=seed)
        if seed is None and not self.toy.is_seeded:
            seed = int(self.np_random.integers(2**32))
        return self.toy.reset(seed).obs["image"], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Choices are integers, or vectors in [-1, 1]."""
        size = self.toy.spec.action.size
        is_discrete = self.toy.spec.action.kind == "discrete"
        vector = np.eye(size, dtype=np.float32)[int(action)] if is_discrete else np.asarray(action, np.float32)
        step = self.toy.step(vector)
        return step.obs["image"], step.reward, step.is_terminal, step.is_last and not step.is_terminal, {}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """A picture of now where ``render_mode`` asks for one."""
        return self.toy.render() if self.render_mode == "rgb_array" else None

    def get_state(self) -> dict[str, Any]:
        """See ``specs.Clones``."""
        return self.toy.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """See ``specs.Clones``."""
        self.toy.set_state(state)


def register() -> None:
    """Make the ids known to Gymnasium; importing ``worldmodel.envs.toys`` does it."""
    for task in ("catch", "glide", "recall"):
        name = f"worldmodel/{task.capitalize()}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point="worldmodel.envs.toys.gym:ToyGym", kwargs={"task": task})
