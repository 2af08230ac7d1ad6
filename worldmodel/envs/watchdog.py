"""Says that a call does not come back. Standard library only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType


class Watchdog:
    """A context that tells ``sentence``, once, when it has been open for ``limit`` seconds at a time.

    Opening and closing it only writes down a time, because a step of an environment may take microseconds; the thread
    that looks now and then may be a quarter of the limit late.
    """

    def __init__(self, limit: float, say: Callable[[str], None], sentence: str) -> None:
        self._limit, self._say, self._sentence = limit, say, sentence
        self._since: float | None = None
        self._is_over = threading.Event()
        threading.Thread(target=self._look, name="env-watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._since = None

    def close(self) -> None:
        """End the thread; more than once does nothing."""
        self._is_over.set()

    def _look(self) -> None:
        while not self._is_over.wait(self._limit / 4):
            since = self._since
            if since is not None and time.monotonic() - since > self._limit:
                self._say(self._sentence)
                return
