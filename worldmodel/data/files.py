"""Opening files: what is wrong with one becomes a sentence, and what is written appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.errors import DataError, StorageError

BROKEN = (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What h5py, numpy and zipfile raise where a file is not what it should be."""


@contextlib.contextmanager
def reading(where: Path | str) -> Iterator[None]:
    """What fails inside is the file's fault. Raises DataError that names it."""
    try:
        yield
    except BROKEN as error:
        said = str(error).strip("'\"") or type(error).__name__
        raise DataError(f"{where} cannot be read ({said}); it is cut short, damaged, or of another format") from error


@contextlib.contextmanager
def hdf5(path: Path, mode: str = "r") -> Iterator[Any]:
    """An h5py.File. Raises DataError without h5py, and for a file that is none."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path} is an HDF5 file, which takes h5py; install it with pip install 'worldmodel[data]'"
        ) from error
    if mode == "r":
        with reading(path):
            file = h5py.File(path, mode)
    else:
        file = h5py.File(path, mode)
    with file:
        yield file


def is_hdf5(path: Path) -> bool:
    """By its first bytes."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"
    return False


def npz_keys(path: Path) -> list[str]:
    """Names of the arrays of an .npz; none where it is not one."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


def members(source: Any, wanted: Sequence[str], where: str) -> None:
    """Raises DataError where ``source`` (an HDF5 group or an .npz) lacks any of ``wanted``."""
    for key in wanted:
        if key not in source:
            raise DataError(f"{where} has no {key!r}; it has {', '.join(map(repr, sorted(source)[:20])) or 'nothing'}")


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz. Raises DataError for one that is broken or holds Python objects."""
    with reading(path), np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A place to write a file or folder to, which becomes ``path`` when all went well.

    Raises: DataError where ``path`` exists, StorageError from the disk.
    """
    if path.exists():
        raise DataError(f"{path} exists; give another name, or remove it first")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        if not error.filename and not error.errno:
            raise
        said = error.strerror or error
        raise StorageError(f"cannot write {path}: {said}; free some space or use another disk") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
