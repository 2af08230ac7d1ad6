"""Checkpoints that survive a kill, a full disk and a flipped bit, and that never run code.

A checkpoint is a folder named after its step, ``000000120000``, of safetensors and JSON files and of folders that
others fill (replay). ``manifest.json`` is written last and lists every file with its size and SHA-256, itself included;
the folder appears under its name only when everything in it has reached the disk. "The latest" is computed, never a
pointer: the highest step whose manifest holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from worldmodel.errors import CheckpointError, StorageError
from worldmodel.train.codec import dump_document, tensor_bytes, tensor_chunks
from worldmodel.train.manifest import FileEntry, Manifest, provenance, sha256_of
from worldmodel.train.restore import MANIFEST, Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "Checkpoints", "open_checkpoint"]

Writer = Callable[[Path, Path | None], None]
"""Fills a folder; the second path is that folder of the previous checkpoint, whose unchanged files it may hard-link."""

_NAME = re.compile(r"\d{12}(-\d+)?")
_TEMPORARY = ".tmp-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 1 << 24


class Checkpoints:
    """The checkpoints of one run. One process writes (hold the run's lock); any number may read.

    >>> checkpoints = Checkpoints(run_dir / "checkpoints")  # doctest: +SKIP
    >>> checkpoints.save(1000, tensors={"model": model.state_dict()}, documents={"loop": {"updates": 250}}, meta={})
    >>> checkpoints.latest(on_skip=warn).tensors("model")
    """

    def __init__(self, folder: Path, keep: int = 2, *, run_id: str = "") -> None:
        """Args: keep newest; run_id is written into each, and those that name another run are not taken for ours."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep, self.run_id = keep, run_id
        self._trusted: Checkpoint | None = None
        self._damaged: set[str] = set()

    def save(
        self,
        step: int,
        *,
        tensors: Mapping[str, Mapping[str, Tensor]],
        documents: Mapping[str, Any],
        writers: Mapping[str, Writer] | None = None,
        meta: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint and then drop older ones beyond ``keep``.

        Args:
            step: decisions taken so far. A second checkpoint of the same step gets a suffix, ``-1``, and is the newer.
            tensors: groups of tensors; each becomes ``<name>.safetensors``.
            documents: each becomes ``<name>.json``; see :func:`worldmodel.train.codec.encode` for what may be in them.
            writers: each fills a sub-folder of its name.
            meta: config hash, commit, device, seed, counters, ...; versions of packages and the wall time are added.

        Returns:
            The folder of the new checkpoint.

        Raises:
            StorageError: the disk is full, read-only, gone or returns what was not written. The older checkpoints are
                untouched and nothing of the new one is left.
        """
        writers = writers or {}
        _check_names([*tensors, *documents, *writers])
        texts = {f"{name}.json": dump_document(value, name) for name, value in documents.items()}
        need = int(1.2 * (sum(map(tensor_bytes, tensors.values())) + sum(map(len, texts.values())) + (1 << 16)))
        previous = self._previous()
        temporary = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            self._make_room(need)
            temporary.mkdir()
            entries = [_write(temporary, f"{name}.safetensors", tensor_chunks(held)) for name, held in tensors.items()]
            entries += [_write(temporary, name, [text]) for name, text in texts.items()]
            reused: set[str] = set()
            for name, writer in writers.items():
                entries += _adopt(temporary, name, writer, previous, reused)
            facts = {**provenance(), **meta, **({"run_id": self.run_id} if self.run_id else {})}
            manifest = Manifest(step=step, files=tuple(entries), folders=tuple(writers), meta=facts)
            _write(temporary, MANIFEST, [manifest.to_bytes()])
            _sync_folder(temporary)
            path = self._publish(temporary, step)
        except OSError as error:
            _discard(temporary)
            raise self._storage_error(step, need, error) from error
        except BaseException:
            _discard(temporary)
            raise
        self._trusted = self._read_back(path, reused)
        self._prune(path)
        return path

    def latest(self, *, verify: bool = True, on_skip: Callable[[str], None]) -> Checkpoint:
        """The newest valid checkpoint; where there is none, the newest that is damaged in sub-folders alone.

        Checkpoints share the old files of replay, so one bad sector can be in all of them.

        Args:
            verify: compare the SHA-256 of every file (about 1.5 GB/s), not just presence and size.
            on_skip: told one sentence for each damaged or foreign checkpoint that is passed over.

        Raises:
            CheckpointError: there is none, or none is valid; the message names file and cause for each.
        """
        failures: list[str] = []
        for path in self.candidates():
            try:
                found = self.open(path, verify=verify)
            except CheckpointError as error:
                self._damaged.add(path.name)
                failures.append(str(error))
                on_skip(f"passing over a checkpoint: {error}")
            else:
                self._trusted = found
                return found
        if not failures:
            raise CheckpointError(
                f"no checkpoint in {self.folder}: the run ended before its first; give its `worldmodel train` again, "
                f"with the same options and --run-dir, and it begins afresh"
            )
        for path in self.candidates():
            with contextlib.suppress(CheckpointError):
                found = self.open(path, verify=verify, salvage=True)
                on_skip(f"no checkpoint is whole; going on from {path} without what is damaged in its sub-folders")
                return found
        listed = "; ".join(failures)
        raise CheckpointError(f"none of the {len(failures)} checkpoints in {self.folder} is valid: {listed}")

    def open(self, path: Path, *, verify: bool = True, salvage: bool = False) -> Checkpoint:
        """One checkpoint of this run. Raises: CheckpointError where it is damaged, or of another run."""
        found = open_checkpoint(path, verify=verify, salvage=salvage)
        theirs = found.meta.get("run_id", "")
        if self.run_id and theirs and theirs != self.run_id:
            raise CheckpointError(
                f"{found.path} is of another run (its id is {theirs}, this run's is {self.run_id}); put it back "
                f"into its own run folder"
            )
        return found

    def candidates(self) -> list[Path]:
        """Every folder that is named like a checkpoint, newest first; links are not followed."""
        found: list[tuple[int, int, Path]] = []
        for path in self._entries():
            if _NAME.fullmatch(path.name) and _is_folder(path):
                step, _, again = path.name.partition("-")
                found.append((int(step), int(again or 0), path))
        return [path for _, _, path in sorted(found, reverse=True)]

    def cleanup(self) -> list[Path]:
        """Remove what dead runs left half-written; call it while holding the run's lock. Returns what was removed."""
        stale = [path for path in self._entries() if path.name.startswith(_TEMPORARY) and _is_folder(path)]
        for path in stale:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise StorageError(f"cannot remove {path}: {error.strerror}; a dead run left it, delete it") from error
        return stale

    def _entries(self) -> Iterator[Path]:
        try:
            yield from sorted(self.folder.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot read {self.folder}: {error.strerror}; check path and permissions") from error

    def _previous(self) -> Checkpoint | None:
        """The newest checkpoint that looks whole, to hard-link from."""
        for path in self.candidates():
            if path.name in self._damaged:
                continue
            if self._trusted is not None and path == self._trusted.path:
                return self._trusted
            with contextlib.suppress(CheckpointError):
                return open_checkpoint(path, verify=False)
        return None

    def _make_room(self, need: int) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(self.folder.parent)
        if shutil.disk_usage(self.folder).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _publish(self, temporary: Path, step: int) -> Path:
        path, again = self.folder / f"{step:012d}", 0
        while os.path.lexists(path):
            again += 1
            path = self.folder / f"{step:012d}-{again}"
        temporary.rename(path)
        _sync_folder(self.folder)
        return path

    def _read_back(self, path: Path, reused: set[str]) -> Checkpoint:
        try:
            return open_checkpoint(path, verify=True, unchecked=reused)
        except CheckpointError as error:
            self._damaged.add(path.name)
            self._remove(path)
            raise StorageError(
                f"the checkpoint just written does not read back ({error}); the disk or the memory is faulty, "
                "older checkpoints are kept, move the run to another disk"
            ) from error

    def _prune(self, newest: Path) -> None:
        """Keep ``newest`` and the ``keep - 1`` whole ones before it."""
        order = self.candidates()
        kept = 1
        for path in order[order.index(newest) + 1 :]:
            if kept >= self.keep:
                self._remove(path)
            elif path.name not in self._damaged and _looks_whole(path):
                kept += 1

    def _remove(self, path: Path) -> None:
        """Rename, then delete: a kill half-way leaves something that ``cleanup`` knows, never half a checkpoint."""
        doomed = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise StorageError(f"cannot remove the checkpoint {path}: {error.strerror}; remove it by hand") from error

    def _storage_error(self, step: int, need: int, error: OSError) -> StorageError:
        if error.errno not in _FULL:
            what = f"{error.filename or self.folder}: {error.strerror or error}"
            return StorageError(
                f"cannot write the checkpoint of step {step}: {what}; "
                f"check that {self.folder} exists and can be written"
            )
        try:
            free = f"{shutil.disk_usage(self.folder).free / 1e6:.1f}"
        except OSError:
            free = "?"
        return StorageError(
            f"disk full: the checkpoint of step {step} needs {need / 1e6:.1f} MB (replay not counted), {free} MB free "
            f"at {self.folder} ({error.strerror}); free some space or raise the limit, older checkpoints are intact"
        )


def _check_names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or f"{name}.json" == MANIFEST or name in seen:
            raise ValueError(f"parts of a checkpoint need distinct names of letters, digits and '_-.', got {name!r}")
        seen.add(name)


def _write(folder: Path, name: str, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Write one file through to the disk, hashing on the way."""
    path, digest, size = folder / name, hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            digest.update(view)
            size += len(view)
            while view:
                view = view[os.write(descriptor, view[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(name=name, bytes=size, sha256=digest.hexdigest())


def _adopt(
    temporary: Path, name: str, writer: Writer, previous: Checkpoint | None, reused: set[str]
) -> list[FileEntry]:
    """Let a writer fill its folder, then sync and hash what is there. A file that is the very file of the previous
    checkpoint (same inode, hard-linked) was synced and hashed before; its name is added to ``reused``."""
    folder = temporary / name
    folder.mkdir()
    try:
        writer(folder, previous.folder(name) if previous is not None and name in previous.folders else None)
    except SafetensorError as error:
        # The safetensors library tells a full disk by a text of its own.
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error
    entries: list[FileEntry] = []
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, file) for file in sorted(files)):
            relative = path.relative_to(temporary).as_posix()
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"the writer of {name!r} left {relative}, which is not a plain file")
            known = _unchanged(previous, relative, status)
            if known is not None:
                reused.add(relative)
                entries.append(known)
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            entries.append(FileEntry(name=relative, bytes=status.st_size, sha256=sha256_of(path)))
        if any(Path(parent, child).is_symlink() for child in folders):
            raise ValueError(f"the writer of {name!r} left a link in {parent}; a checkpoint holds plain files only")
        _sync_folder(Path(parent))
    return entries


def _unchanged(previous: Checkpoint | None, relative: str, status: os.stat_result) -> FileEntry | None:
    entry = previous.files.get(relative) if previous is not None else None
    if previous is None or entry is None or status.st_nlink < 2:
        return None
    try:
        before = (previous.path / relative).lstat()
    except OSError:
        return None
    same = (before.st_dev, before.st_ino, before.st_size) == (status.st_dev, status.st_ino, status.st_size)
    return entry if same and entry.bytes == status.st_size else None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; their files are synced all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _looks_whole(path: Path) -> bool:
    try:
        open_checkpoint(path, verify=False)
    except CheckpointError:
        return False
    return True


def _discard(temporary: Path) -> None:
    # A failure here must not hide the one that led here; cleanup() gets what stays behind.
    shutil.rmtree(temporary, ignore_errors=True)
