"""Errors that a user can act on: each carries one sentence (what was given, what was expected, what to do)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the caller or of the machine's set-up; the command line prints its text and exits with code 2."""


class EnvError(UserError):
    """An environment that cannot be built, or that broke its contract (dead, hung, NaN, wrong shape)."""


class MisfitError(UserError, ValueError):
    """Settings, each allowed on its own, that do not fit each other or the environment; found when parts are built."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, foreign, or does not fit the run that asks for it."""


class DataError(UserError):
    """A dataset that is missing, broken, or of another form than what asks for it; names file, key and episode."""


class StorageError(UserError):
    """A disk that is full, read-only or gone. The command line exits with code 75 (try again later)."""


class DivergenceError(UserError):
    """Too many non-finite updates in a row. The command line exits with code 70."""


def check_range(config: object, low: float, *names: str, high: float = math.inf) -> None:
    """For a config's ``__post_init__``: raises ValueError where one of these is not in [low, high], or not finite."""
    for name in names:
        value = getattr(config, name)
        if not (low <= value <= high and math.isfinite(value)):
            bounds = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise ValueError(f"{name} must be {bounds}, got {value}")


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist, with the closest names that do.

    >>> unknown("preset", "dmc.vison", ["dmc.vision", "atari100k"])
    "unknown preset 'dmc.vison'; did you mean 'dmc.vision'? Known: atari100k, dmc.vision"
    """
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return f"unknown {kind} {given!r}{hint} Known: {listed}"
