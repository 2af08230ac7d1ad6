"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from worldmodel.errors import StorageError


def beginning(name: str) -> str:
    """What names of unfinished files begin with, that are to take the place of this one."""
    return f".{name}."


@contextlib.contextmanager
def replacing(path: Path, *, otherwise: str = "check the free space and the permissions there") -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of ``path`` when all went well: at every moment there is the old one or
    the new one. Until then, and after a process was killed, it lies beside it, see :func:`beginning`.

    Args: otherwise: what to do where it cannot be written.
    Raises: StorageError from the disk.
    """
    part = path.with_name(f"{beginning(path.name)}{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; {otherwise}") from error
