"""One trainer per run folder.

The file ``lock`` says who trains: process, host, since when. Where the holder ran on this very machine, the
process itself is looked for (its id *and* start time, so a reused id does not count); elsewhere the age of the file is
judged, which a holder touches every 20 seconds. A lock whose holder is dead is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from worldmodel.errors import StorageError, UserError

HEARTBEAT = 20.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without one after which a holder on another machine counts as dead."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock."""

    pid: int
    host: str
    machine: str
    """Boot id and process namespace: process ids mean the same only where this is the same."""
    process_start: str
    """When the process started, in the kernel's words; "" where the kernel does not say."""
    since: str
    """Wall time, for people."""
    token: str
    """Unique to one acquisition."""

    @classmethod
    def this_process(cls) -> Holder:
        """What this process writes into a lock."""
        return cls(
            pid=os.getpid(),
            host=platform.node(),
            machine=_machine(),
            process_start=_process_start(os.getpid()),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=uuid.uuid4().hex,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


class RunLock:
    """Holds a run folder while the context is open.

    Args:
        run_dir: the folder; it must exist.
        warn: told one sentence when the lock of a dead run is taken over.

    Raises (on entering):
        UserError: another trainer holds it; the sentence names its process and host.
        StorageError: the folder is missing or cannot be written.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "lock"
        self._warn = warn
        self._mine: Holder | None = None
        self._stop = threading.Event()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock; see the class for what it raises."""
        mine = Holder.this_process()
        try:
            with self._exclusive():
                self._take(mine)
        except OSError as error:
            raise StorageError(
                f"cannot lock the run folder {self.run_dir}: {error.strerror}; it must exist and be writable"
            ) from error
        self._mine = mine
        self._stop.clear()
        threading.Thread(target=self._beat, args=(mine,), name="run-lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back; does nothing when it is not, or no longer, ours."""
        self._stop.set()
        mine, self._mine = self._mine, None
        # Somebody may have deleted the folder; a lock that is gone is a lock released.
        with contextlib.suppress(OSError):
            if mine is not None and self._holder() == mine:
                self.path.unlink()

    def _take(self, mine: Holder) -> None:
        if os.path.lexists(self.path):
            holder = self._holder()
            if holder is not None:
                self._refuse_if_alive(holder)
                self._warn(f"taking over the run folder from {holder}, which is dead")
            self.path.unlink()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, json.dumps(asdict(mine)).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _refuse_if_alive(self, holder: Holder) -> None:
        if holder.machine and holder.machine == _machine():
            start = _process_start(holder.pid)
            alive = _exists(holder.pid) and (not start or not holder.process_start or start == holder.process_start)
            hint = "stop it first, or train in another folder"
        else:
            silent = self._age()
            alive = silent < SILENCE
            hint = f"stop it first; if it is dead, try again in {max(SILENCE - silent, 1):.0f} seconds"
        if alive:
            raise UserError(f"{self.run_dir} is being trained by {holder}; {hint}")

    def _age(self) -> float:
        """Seconds since the last sign of life, by the clock of the file system: hosts disagree about the time."""
        probe = self.run_dir / f".clock-{uuid.uuid4().hex}"
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.lstat().st_mtime
        finally:
            probe.unlink()

    def _holder(self) -> Holder | None:
        """None: the file is torn, its writer died while writing it."""
        try:
            holder = Holder(**json.loads(self.path.read_bytes()))
        except (ValueError, TypeError):
            return None
        return holder if type(holder.pid) is int and 0 < holder.pid < 1 << 31 else None

    def _beat(self, mine: Holder) -> None:
        while not self._stop.wait(HEARTBEAT):
            # A disk that is away for a while is no reason to stop training.
            with contextlib.suppress(OSError):
                if self._holder() == mine:
                    os.utime(self.path)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Only one process at a time reads, judges and replaces; ``flock`` on the folder ends with its holder."""
        descriptor = os.open(self.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                # A file system without flock: O_EXCL alone decides, good enough but for simultaneous take-overs.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF):
                    raise
            yield
        finally:
            os.close(descriptor)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot: field 22 of ``/proc/<pid>/stat``; "" where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The command in parentheses may hold anything, spaces and parentheses included. A zombie does not train.
    fields = text.rpartition(")")[2].split()
    return "zombie" if fields[0] in "ZX" else fields[19]


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        # Elsewhere (macOS) the host name has to do.
        return platform.node()
