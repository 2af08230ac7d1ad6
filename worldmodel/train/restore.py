"""Reading a checkpoint, whoever wrote it: everything is checked, nothing is executed."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from worldmodel.errors import CheckpointError, unknown
from worldmodel.train.codec import load_document
from worldmodel.train.manifest import FileEntry, Manifest, sha256_of

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose manifest holds."""

    path: Path
    step: int
    """Decisions taken when it was saved."""
    meta: dict[str, Any]
    """What the run said about itself, with versions and wall time."""
    files: dict[str, FileEntry] = field(repr=False)
    folders: tuple[str, ...]
    is_whole: bool = True
    """False: files of sub-folders are damaged; who fills these checks them again, and does without."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A group of tensors, on the CPU.

        Raises:
            CheckpointError: no such group, or the file is not valid safetensors.
        """
        path = self._file(name, ".safetensors", "tensor group")
        try:
            # Cloned: what is mapped from a file ends in SIGBUS if the file shrinks, and keeps NFS from removing it.
            return {key: tensor.clone() for key, tensor in load_file(path).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from error

    def document(self, name: str) -> Any:
        """A document, as it was given to ``save``.

        Raises:
            CheckpointError: no such document, or it cannot be decoded.
        """
        return load_document(self._file(name, ".json", "document"))

    def folder(self, name: str) -> Path:
        """A sub-folder that a writer filled.

        Raises:
            CheckpointError: no such folder.
        """
        if name not in self.folders:
            raise CheckpointError(f"{self.path}: " + unknown("folder", name, self.folders))
        return self.path / name

    def groups(self) -> list[str]:
        """Names that :meth:`tensors` takes."""
        return self._names(".safetensors")

    def documents(self) -> list[str]:
        """Names that :meth:`document` takes."""
        return self._names(".json")

    def _names(self, kind: str) -> list[str]:
        return sorted(name.removesuffix(kind) for name in self.files if "/" not in name and name.endswith(kind))

    def _file(self, name: str, kind: str, noun: str) -> Path:
        if name not in self._names(kind):
            raise CheckpointError(f"{self.path}: " + unknown(noun, name, self._names(kind)))
        return self.path / f"{name}{kind}"


def open_checkpoint(
    path: Path, *, verify: bool = True, unchecked: Collection[str] = (), salvage: bool = False
) -> Checkpoint:
    """Open one checkpoint and check it.

    Args:
        path: its folder.
        verify: compare the SHA-256 of every file; else presence, kind and size only.
        unchecked: names whose digest need not be compared (they were, a moment ago).
        salvage: put up with damaged or missing tensor files in sub-folders (replay), which are most of the bytes.

    Raises:
        CheckpointError: not a checkpoint, of an unknown version, or damaged; the message names the file and the cause.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG((path / MANIFEST).lstat().st_mode):
            raise ValueError("it is not a plain file")
        manifest = Manifest.read(path / MANIFEST)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} has no {MANIFEST}: not a checkpoint, or not a complete one") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be trusted: {_cause(error)}") from error
    is_whole = True
    for entry in manifest.files:
        try:
            _check_file(path, entry, verify and entry.name not in unchecked)
        except (OSError, ValueError, SafetensorError) as error:
            if salvage and "/" in entry.name and entry.name.endswith(".safetensors"):
                is_whole = False
                continue
            raise CheckpointError(f"{path / entry.name} is damaged: {_cause(error)}") from error
    listed = {entry.name for entry in manifest.files}
    for folder in manifest.folders:
        _check_folder(path, folder, listed)
    files = {entry.name: entry for entry in manifest.files}
    return Checkpoint(
        path=path, step=manifest.step, meta=manifest.meta, files=files, folders=manifest.folders, is_whole=is_whole
    )


def _check_file(root: Path, entry: FileEntry, verify: bool) -> None:
    parents = list(PurePosixPath(entry.name).parents)[:-1]
    if any((root / parent).is_symlink() for parent in parents):
        raise ValueError("a folder above it is a link")
    path = root / entry.name
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a plain file")
    if status.st_size != entry.bytes:
        raise ValueError(f"it has {status.st_size} bytes, the manifest says {entry.bytes}")
    if verify and sha256_of(path) != entry.sha256:
        raise ValueError("its content does not match the digest in the manifest")
    if "/" not in entry.name and entry.name.endswith(".safetensors"):
        # The reader checks the header: length, overlapping or missing ranges, types.
        with safe_open(path, framework="pt"):
            pass


def _check_folder(root: Path, folder: str, listed: Collection[str]) -> None:
    top = root / folder
    if top.is_symlink() or not top.is_dir():
        raise CheckpointError(f"{top} is missing or not a folder")
    for parent, folders, files in os.walk(top):
        for name in files:
            path = Path(parent, name)
            if path.relative_to(root).as_posix() not in listed:
                raise CheckpointError(f"{path} is not listed in {MANIFEST}: it does not belong to this checkpoint")
        for name in folders:
            if Path(parent, name).is_symlink():
                raise CheckpointError(f"{Path(parent, name)} is a link, a checkpoint has plain folders only")


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
