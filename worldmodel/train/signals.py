"""Stopping politely: a first signal asks the loop to finish its step and save, a second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What asks to stop: a scheduler's end, Ctrl-C, and the early warning of Slurm (``--signal=USR1@60``)."""


def exit_code(signum: int) -> int:
    """The exit code of a run that a signal ended: 130 for SIGINT, 143 for SIGTERM and SIGUSR1 (which announces it)."""
    return 128 + (signal.SIGTERM if signum == signal.SIGUSR1 else signum)


class GracefulExit:
    """Turns signals into a flag while the context is open.

    Args:
        debounce: seconds after the first signal during which more of them count as the same request: launchers forward
            a signal that the process group has received already.

    >>> with GracefulExit() as interrupted:  # doctest: +SKIP
    ...     while interrupted.requested is None:
    ...         train_one_step()
    """

    def __init__(self, debounce: float = 0.5) -> None:
        self.debounce = debounce
        self._requested: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> int | None:
        """The number of the first signal received, or None."""
        return self._requested

    @property
    def exit_code(self) -> int:
        """0, or the exit code that belongs to the signal received."""
        return 0 if self._requested is None else exit_code(self._requested)

    def __enter__(self) -> GracefulExit:
        # Python lets only the main thread install handlers; elsewhere whoever owns that thread decides.
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            # None: the handler before was not installed from Python and cannot be put back.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested is None:
            self._requested, self._since = signum, now
        elif now - self._since >= self.debounce:
            os._exit(exit_code(signum))
