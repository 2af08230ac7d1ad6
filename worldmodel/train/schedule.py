"""Counters: when to learn, log, evaluate, save and stop."""

from __future__ import annotations

import time
from typing import Any


class Every:
    """True once for each ``steps`` decisions, or each ``seconds`` of wall clock where ``steps`` is 0."""

    def __init__(self, *, steps: int = 0, seconds: float = 0.0) -> None:
        self.steps, self.seconds = steps, seconds
        self._next, self._last = steps, time.monotonic()

    def __call__(self, now: int) -> bool:
        if self.steps:
            if now < self._next:
                return False
            self._next = (now // self.steps + 1) * self.steps
            return True
        if self.seconds and time.monotonic() - self._last >= self.seconds:
            self._last = time.monotonic()
            return True
        return False

    def resume(self, now: int) -> None:
        """Go on after ``now`` decisions: what was due by then has been done."""
        if self.steps:
            self._next = (now // self.steps + 1) * self.steps


class TrainRatio:
    """Replayed steps per decision, kept exactly: credit in replayed steps, spent a batch at a time.

    Credit only grows while replay can be drawn from, so neither a start nor a resume is followed by a storm of updates,
    unless ``first`` asks for one.
    """

    def __init__(self, ratio: float, batch_steps: int, *, first: int = 0) -> None:
        """Args: ratio; batch_steps = batch_size * length; first: further updates when replay is first ready."""
        self.ratio, self.batch_steps, self.first = ratio, batch_steps, first
        self.credit = 0.0
        self.updates = 0

    def due(self, decisions: int, ready: bool) -> int:
        """Updates to make after ``decisions`` more decisions."""
        if not ready:
            return 0
        self.credit += decisions * self.ratio
        due = int(self.credit // self.batch_steps)
        self.credit -= due * self.batch_steps
        if not self.updates:
            due += self.first
        self.updates += due
        return due

    def state(self) -> dict[str, Any]:
        return {"credit": self.credit, "updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        self.credit, self.updates = float(state["credit"]), int(state["updates"])
