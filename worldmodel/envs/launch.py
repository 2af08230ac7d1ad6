"""Starting a worker process: freshly spawned, never forked, and without running the main script again."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

_SPAWN = multiprocessing.get_context("spawn")
_MAIN_LOCK = threading.Lock()


def launch(name: str, connection: socket.socket, payload: dict[str, Any], *, needs_main: bool) -> Any:
    """Start a process that runs :func:`worldmodel.envs.host.work` on ``connection``, and return it.

    Spawning would import the caller's main script in each worker: torch and the whole command line for ``worldmodel
    train``, and no end of processes for a script without ``if __name__ == "__main__"``. A worker needs it only where
    the environment itself is defined there.
    """
    process = _SPAWN.Process(target=_enter, args=(connection, payload), name=name, daemon=True)
    with contextlib.nullcontext() if needs_main else _without_main():
        process.start()
    return process


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """For the few milliseconds of a start, a main module that came from nowhere."""
    with _MAIN_LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _enter(connection: socket.socket, payload: dict[str, Any]) -> None:
    """First lines of a worker."""
    # A group of its own: what the environment starts can be killed along with it.
    os.setpgid(0, 0)
    # A scheduler's signals go to all processes of a job; the pool decides when its workers end. Handlers
    # rather than SIG_IGN, which the programs that an environment starts would inherit.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, _ignore)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # One core per environment; on machines with many cores, the thread pools of N workers would not even start.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    from worldmodel.envs.host import work

    if not work(connection, payload):
        os.killpg(0, signal.SIGKILL)


def _ignore(signum: int, frame: types.FrameType | None) -> None:
    pass


def _die_with_parent() -> None:
    """A worker that waits for a command sees the end of its channel; this is for one that is busy or hangs, and for
    the programs that it started."""
    parent = multiprocessing.process.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
