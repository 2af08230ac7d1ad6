"""Recall: a coloured disc shows in one corner for one step; later, after an empty room, a white box asks which it was.

Nothing but memory tells the right action. An episode is one question; its reward is 1 for the right answer and 0 else,
and its last picture shows the disc again.
"""

from __future__ import annotations

import numpy as np

from worldmodel.envs.toys.draw import UNITS, Sprite
from worldmodel.specs import ActionSpec

CUES: tuple[tuple[float, float, tuple[int, int, int]], ...] = (
    (0.25, 0.25, (255, 80, 72)),
    (0.75, 0.25, (84, 216, 96)),
    (0.25, 0.75, (88, 140, 255)),
    (0.75, 0.75, (255, 208, 64)),
)
"""Where the disc of each action shows, in sides of the picture, and in which colour."""
STREAK = 3
"""Right answers after which a delay that follows the player grows: it settles where 79 % are right (Levitt 1971), and
who guesses leaves it where it began, with a question that comes when it is expected."""


class Recall:
    """N games of Recall, see ``base.Task``. Actions: the four corners, row by row; only the one after the question
    counts."""

    action = ActionSpec(kind="discrete", size=len(CUES))
    draws = 1
    background = np.array([34, 34, 40], np.uint8)

    def __init__(self, num_envs: int, size: int, delay: int, shortest: int | None = None) -> None:
        """Args: delay, the empty pictures between the disc and the question; shortest, where given, the delay to begin
        with: :data:`STREAK` right answers one after the other double it, up to ``delay``, and a wrong one halves it."""
        self.state = {"tick": np.zeros(num_envs, np.int64), "cue": np.zeros(num_envs, np.int64)}
        if shortest is not None:
            self.state["delay"] = np.full(num_envs, shortest, np.int64)
            self.state["streak"] = np.zeros(num_envs, np.int64)
        self._delay, self._shortest = delay, shortest
        # both exact: a quarter of the guesses is right
        self.reference = {"random": 1.0 / len(CUES), "optimum": 1.0}
        self.max_steps = delay + 2
        self._discs = [Sprite("disc", (7.0, 7.0), color, size) for _, _, color in CUES]
        self._question = Sprite("box", (5.0, 5.0), (255, 255, 255), size)
        self._middle = np.full(num_envs, UNITS / 2)

    def begin(self, rows: np.ndarray, uniform: np.ndarray) -> None:
        self.state["tick"][rows] = 0
        self.state["cue"][rows] = (uniform[:, 0] * len(CUES)).astype(np.int64)
        if self._shortest is not None:
            streak, delay = self.state["streak"][rows], self.state["delay"][rows]
            # counted from 1, so that none at all grows too
            delay = np.where(streak == STREAK, 2 * delay + 1, np.where(streak < 0, (delay - 1) // 2, delay))
            self.state["delay"][rows] = delay.clip(self._shortest, self._delay)
            self.state["streak"][rows] = np.where(streak == STREAK, 0, streak.clip(0))

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tick = self.state["tick"]
        tick += 1
        is_over = tick >= self._ends
        is_right = is_over & (action.argmax(1) == self.state["cue"])
        if self._shortest is not None:
            # once: rows whose episode is over do anything
            streak = np.where(is_right, self.state["streak"] + 1, -1)
            self.state["streak"] = np.where(tick == self._ends, streak, self.state["streak"])
        return is_right.astype(np.float32), is_over, is_over.copy()

    def draw(self, images: np.ndarray) -> None:
        tick, cue = self.state["tick"], self.state["cue"]
        # the last picture answers the question: what is remembered can be learned by predicting, not by reward alone
        shows_cue, asks = (tick == 0) | (tick == self._ends), tick == self._ends - 1
        if shows_cue.any():
            for k, (x, y, _) in enumerate(CUES):
                at = UNITS * x, UNITS * y
                self._discs[k].paste(images, *(np.full(len(tick), c) for c in at), shown=shows_cue & (cue == k))
        if asks.any():
            self._question.paste(images, self._middle, self._middle, shown=asks)

    @property
    def _ends(self) -> np.ndarray | int:
        """The tick of each row's last picture."""
        return self.state["delay"] + 2 if self._shortest is not None else self.max_steps

    def expert(self) -> np.ndarray:
        """(N,) the right answer, at every step."""
        return self.state["cue"].copy()
