"""Kinds of files, a module each with a ``FORMAT``: adding a file here adds a format."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from worldmodel.data.episodes import Dataset, Episode, Header, ReadOptions
from worldmodel.errors import DataError, unknown


class Format(Protocol):
    """How episodes lie in files of one kind."""

    name: str
    summary: str
    """A line, for lists."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path``, which exists, is of this kind; a look, not a check."""
        ...

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """The dataset, its episodes not read yet. Raises DataError."""
        ...


@runtime_checkable
class Writes(Protocol):
    """A format that can be written too."""

    def write(self, path: Path, header: Header, episodes: Iterable[Episode]) -> int:
        """Write into ``path``, which does not exist; the number of episodes. Raises DataError, OSError."""
        ...


@functools.cache
def formats() -> dict[str, Format]:
    """All of them, by name."""
    found = [importlib.import_module(f"{__name__}.{entry.name}").FORMAT for entry in pkgutil.iter_modules(__path__)]
    return {each.name: each for each in found}


def find_format(name: str) -> Format:
    """By name. Raises DataError for one that does not exist."""
    if name not in formats():
        raise DataError(unknown("format", name, formats()))
    return formats()[name]


def open_dataset(where: str | Path, options: ReadOptions | None = None) -> Dataset:
    """The dataset at a path, or at "FORMAT:PATH" where its kind is not to be seen ("minari:ID" finds an installed one).

    Raises: DataError where there is none, or where its kind is not clear.
    """
    named, colon, rest = str(where).partition(":")
    chosen = formats().get(named) if colon else None
    path = Path(rest if chosen else where).expanduser()
    if chosen is not None:
        return chosen.read(path, options or ReadOptions())
    if not path.exists():
        raise DataError(f"there is no dataset {path}; check the path")
    fitting = [each for each in formats().values() if each.recognises(path)]
    if len(fitting) != 1:
        seen = " or ".join(each.name for each in fitting) or "none of the formats known"
        raise DataError(f"{path} looks like {seen}; say which it is, FORMAT:PATH, one of {', '.join(formats())}")
    return fitting[0].read(path, options or ReadOptions())


def absolute(where: str) -> str:
    """The same dataset from any working directory: "runs/data" or "FORMAT:PATH" with the path made absolute, and each
    of several, between commas."""
    if "," in where and not Path(where).expanduser().exists():
        return ",".join(absolute(part.strip()) for part in where.split(","))
    named, colon, rest = where.partition(":")
    prefix, path = (f"{named}:", rest) if colon and named in formats() else ("", where)
    found = Path(path).expanduser()
    return f"{prefix}{found.resolve()}" if where and found.exists() else where


def write_dataset(where: str | Path, name: str, header: Header, episodes: Iterable[Episode]) -> int:
    """Write episodes as a file or folder of this format; their number.

    Raises: DataError where it exists already or the format cannot be written or hold them; StorageError.
    """
    from worldmodel.data.files import appearing

    kind: object = find_format(name)
    if not isinstance(kind, Writes):
        able = [each.name for each in formats().values() if isinstance(each, Writes)]
        raise DataError(f"the format {name} can be read but not written; take one of {', '.join(able)}")
    with appearing(Path(where).expanduser()) as part:
        return kind.write(part, header, episodes)
