"""Catch: balls fall one after another, drifting sideways; a paddle at the bottom catches them.

How a ball drifts is hidden in one picture and shows in two. An episode is four balls, each worth 1 when it is caught,
and every ball can be caught: the paddle crosses the whole room in fewer steps than a ball falls.
"""

from __future__ import annotations

import numpy as np

from worldmodel.envs.toys.draw import UNITS, Sprite
from worldmodel.specs import ActionSpec

BALLS = 4
FRAMES = 14
"""Pictures of each ball; it arrives in the last of them."""
SPEED = 3.0
"""Units that the paddle moves in a step."""
DRIFT = 0.5
"""The largest sideways speed of a ball, units per step."""
RADIUS, HALF = 3.0, 4.0
"""The ball's radius and half of the paddle's width, units. A ball is caught when its centre is above the paddle."""
FALL = (UNITS - 2.0 - 2 * RADIUS) / (FRAMES - 1)
"""How far a ball falls in a step, units: in its last picture it touches the paddle's top."""


class Catch:
    """N games of Catch, see ``base.Task``. Actions: left, stay, right."""

    action = ActionSpec(kind="discrete", size=3)
    draws = 2 * BALLS
    max_steps = BALLS * FRAMES - 1
    background = np.array([24, 26, 38], np.uint8)

    def __init__(self, num_envs: int, size: int) -> None:
        # random: mean of 20,000 episodes of uniformly random actions, standard error 0.006; optimum: one for each ball
        self.reference = {"random": 1.13, "optimum": float(BALLS)}
        self.state = {
            "tick": np.zeros(num_envs, np.int64),
            "paddle": np.zeros(num_envs),
            "start": np.zeros((num_envs, BALLS)),
            "drift": np.zeros((num_envs, BALLS)),
        }
        self._rows = np.arange(num_envs)
        self._ball = Sprite("disc", (RADIUS, RADIUS), (255, 214, 64), size)
        self._paddle = Sprite("box", (HALF, 1.0), (72, 196, 255), size)

    def begin(self, rows: np.ndarray, uniform: np.ndarray) -> None:
        state = self.state
        state["tick"][rows] = 0
        state["paddle"][rows] = UNITS / 2
        state["start"][rows] = RADIUS + (UNITS - 2 * RADIUS) * uniform[:, :BALLS]
        state["drift"][rows] = DRIFT * (2 * uniform[:, BALLS:] - 1)

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tick, paddle = self.state["tick"], self.state["paddle"]
        tick += 1
        paddle += SPEED * (action.argmax(1) - 1)
        np.minimum(np.maximum(paddle, HALF, out=paddle), UNITS - HALF, out=paddle)
        fallen = tick % FRAMES
        is_caught = (fallen == FRAMES - 1) & (np.abs(self._x(fallen) - paddle) <= HALF)
        is_over = tick >= self.max_steps
        return is_caught.astype(np.float32), is_over, is_over.copy()

    def draw(self, images: np.ndarray) -> None:
        fallen = self.state["tick"] % FRAMES
        self._paddle.paste(images, self.state["paddle"], np.full(len(images), UNITS - 1.0))
        self._ball.paste(images, self._x(fallen), RADIUS + FALL * fallen)

    def expert(self) -> np.ndarray:
        """(N,) go where the ball will arrive; never misses."""
        off = self._x(np.full(len(self._rows), FRAMES - 1)) - self.state["paddle"]
        return 1 + np.sign(off).astype(np.int64) * (np.abs(off) > SPEED / 2)

    def _x(self, fallen: np.ndarray) -> np.ndarray:
        """Where the ball of now is after ``fallen`` steps, walls reflect: (N,) units."""
        ball = np.minimum(self.state["tick"] // FRAMES, BALLS - 1)
        start, drift = self.state["start"][self._rows, ball], self.state["drift"][self._rows, ball]
        span = UNITS - 2 * RADIUS
        return RADIUS + span - np.abs((start - RADIUS + drift * fallen) % (2 * span) - span)
