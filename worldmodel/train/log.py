"""Rows of numbers to JSON lines, TensorBoard and, where asked for, Weights & Biases. Logging never stops a run.

``metrics.jsonl`` holds one row per call of ``scalars``, ``scores.jsonl`` one per evaluation or episode: JSON objects
with "step" (decisions) and named numbers; what is not finite is the string "nan", "inf" or "-inf", which
:func:`read_metrics` turns back. Values that measure time have names that begin "time/" or "fps/"; all others of a
seeded run are reproducible, so two runs are compared without these.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import re
import struct
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from worldmodel.errors import StorageError, UserError
from worldmodel.train.video import save_animation

BEGINNING = {"metrics.jsonl": 0, "scores.jsonl": 0, "step": -1}
"""The :meth:`Logger.position` of a run that has not begun."""
_BACKLOG = 10_000
_LARGEST_PICTURE = 4 << 20
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Logger:
    """Where a run writes its numbers and videos.

    Args:
        run_dir: the run folder.
        wandb: a Weights & Biases project; empty for none.
        config: what the run is, for Weights & Biases.
        warn: told one sentence, once, for each place that fails; the run goes on without it.

    Raises:
        UserError: ``wandb`` was asked for and is not installed.
        StorageError: the run folder cannot be written at the start.
    """

    def __init__(
        self, run_dir: Path, *, wandb: str = "", config: dict[str, Any] | None = None, warn: Callable[[str], None]
    ) -> None:
        self.run_dir = Path(run_dir)
        self._warn = warn
        self._warned: set[str] = set()
        self._last_step = -1
        self._lines = {name: _Lines(self.run_dir / name) for name in BEGINNING if name != "step"}
        self._events = _Events(self.run_dir / "tensorboard")
        self._wandb = _start_wandb(wandb, self.run_dir, config) if wandb else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row of metrics."""
        row = {name: float(value) for name, value in values.items()}
        self._append("metrics.jsonl", step, row)
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in row.items()])
        self._guard("TensorBoard", lambda: self._events.write(step, summary))
        if self._wandb is not None:
            self._guard("Weights & Biases", lambda: self._wandb and self._wandb.log(row, step=step))

    def score(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row of scores: numbers, texts and lists of numbers."""
        self._append("scores.jsonl", step, values)

    def video(self, step: int, name: str, frames: Any, fps: float = 12.0) -> Path | None:
        """Write an animation to ``videos/<name>-<step>.png`` (APNG) and, up to 4 MB, to TensorBoard.

        Args:
            frames: (T, h, w, 3) uint8.

        Returns:
            The file, or None where it could not be written.
        """
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name.removeprefix("video/")).strip("._") or "video"
        path = self.run_dir / "videos" / f"{plain}-{step:09d}.png"
        try:
            save_animation(path, frames, fps)
        except StorageError as error:
            self._warn_once("videos", f"{error}; training goes on without this video")
            return None
        # Browsers play an APNG wherever they show a PNG, TensorBoard's image tab included.
        if path.stat().st_size <= _LARGEST_PICTURE:
            self._guard("TensorBoard", lambda: self._events.write(step, _picture(plain, path.read_bytes())))
        return path

    def position(self) -> dict[str, int]:
        """How far the files go, after writing them through to the disk; goes into a checkpoint."""
        for name, lines in self._lines.items():
            self._guard(name, lines.sync)
        return {**{name: lines.size for name, lines in self._lines.items()}, "step": self._last_step}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Go back to a :meth:`position`: drop the rows after it, which the resumed run will write again, and tell
        TensorBoard to do so."""
        self._last_step = int(position["step"])
        for name, lines in self._lines.items():
            missing = int(position[name]) - lines.size
            if missing > 0:
                self._warn(f"{lines.path} is {missing} bytes shorter than at the checkpoint; rows are missing")
            self._guard(name, lambda lines=lines, name=name: lines.truncate(int(position[name])))
        self._guard("TensorBoard", lambda: self._events.purge(self._last_step + 1))

    def close(self) -> None:
        """Write out and close everything; the logger is not used afterwards."""
        for name, lines in self._lines.items():
            self._guard(name, lines.close)
        self._guard("TensorBoard", self._events.close)
        if self._wandb is not None:
            self._guard("Weights & Biases", self._wandb.finish)

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        self._last_step = max(self._last_step, step)
        row = {"step": step, **{key: _plain(value) for key, value in values.items()}}
        line = json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"
        self._guard(name, lambda: self._lines[name].append(line.encode()))

    def _guard(self, what: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except OSError as error:
            kept = ", rows are written once it works again" if what.endswith("jsonl") else ""
            cause = error.strerror or error
            self._warn_once(what, f"cannot write {what} in {self.run_dir}: {cause}; training goes on{kept}")
        except Exception as error:
            # Weights & Biases raises whatever its network layer raises; a broken service must not end a training.
            if what != "Weights & Biases":
                raise
            self._wandb = None
            self._warn_once(what, f"{what} failed ({type(error).__name__}: {error}) and is left out from here on")

    def _warn_once(self, what: str, sentence: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(sentence)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl`` or ``scores.jsonl``; a last line torn by a crash is left out.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    rows: list[dict[str, Any]] = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append({name: _special(value) for name, value in json.loads(line).items()})
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not a JSON row: {error}") from error
    return rows


def _plain(value: Any) -> Any:
    """JSON that every reader takes: arrays and tensors to lists and numbers, what is not finite to text."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    number = float(value)
    return number if math.isfinite(number) else repr(number)


def _special(value: Any) -> Any:
    if isinstance(value, list):
        return [_special(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def _picture(name: str, png: bytes) -> Summary:
    # Width and height stand in the first chunk of a PNG, after 8 bytes of signature and 8 of chunk header.
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=name, image=image)])


class _Lines:
    """An append-only file of lines. A line is written whole or not at all; what cannot be written now waits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque(maxlen=_BACKLOG)
        try:
            self._descriptor = self._open()
            self.size = self._whole()
            os.ftruncate(self._descriptor, self.size)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}; give a writable run folder") from error

    def append(self, line: bytes) -> None:
        self._waiting.append(line)
        if os.fstat(self._descriptor).st_nlink == 0:
            # Somebody deleted the file: what was in it is lost, what comes goes to a new one.
            os.close(self._descriptor)
            self._descriptor, self.size = self._open(), 0
        while self._waiting:
            self._write(self._waiting[0])
            self._waiting.popleft()

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def truncate(self, size: int) -> None:
        self._waiting.clear()
        self.size = min(size, self.size)
        os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def _whole(self) -> int:
        """Size up to the last line end: a crash may have torn the line after it."""
        end = os.fstat(self._descriptor).st_size
        while end > 0:
            start = max(end - 65536, 0)
            found = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _write(self, line: bytes) -> None:
        done = 0
        try:
            while done < len(line):
                done += os.write(self._descriptor, line[done:])
        except OSError:
            # The half line must not stand before the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += done


class _Events:
    """A TensorBoard event file, by TensorBoard's own record writer, without its thread: a failure is seen where it
    happens, and nothing waits for a thread that died."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None
        self._records: RecordWriter | None = None

    def write(self, step: int, summary: Summary) -> None:
        self._put(Event(wall_time=time.time(), step=step, summary=summary))

    def purge(self, step: int) -> None:
        """Tell TensorBoard to forget what earlier files say of ``step`` and later."""
        self._put(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _put(self, event: Event) -> None:
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
            self.close()
            self._start()
            self._record(event)
            raise FileNotFoundError(errno.ENOENT, "its event file was deleted, a new one was started")
        try:
            if self._file is None:
                self._start()
            self._record(event)
        except OSError:
            # A record may be torn; what follows it in this file would not be read.
            with contextlib.suppress(OSError):
                self.close()
            raise

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names, and a resumed run may start within the same second.
        seconds, nanos = divmod(time.time_ns(), 10**9)
        unique = f"{seconds:010d}.{nanos:09d}.{platform.node()}.{os.getpid()}"
        self._file = (self.folder / f"events.out.tfevents.{unique}").open("xb")
        self._records = RecordWriter(self._file)
        self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _record(self, event: Event) -> None:
        assert self._records is not None
        self._records.write(event.SerializeToString())
        self._records.flush()


def _start_wandb(project: str, run_dir: Path, config: dict[str, Any] | None) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("train.wandb needs wandb; pip install 'worldmodel[wandb]', or leave it empty") from error
    known = run_dir / "wandb-id"
    if not known.exists():
        known.write_text(uuid.uuid4().hex[:12])
    name = known.read_text().strip()
    return wandb.init(
        project=project, name=run_dir.name, id=name, dir=str(run_dir), config=config, resume="allow"
    )
