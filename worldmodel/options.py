"""Options from typed dataclasses by tyro; what it refuses becomes one sentence with the closest options that exist."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import tyro

from worldmodel.errors import UserError

T = TypeVar("T")

HELP = ("-h", "--help")


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    default: T | None = None,
    flat: Collection[str] = (),
) -> T:
    """An instance of the dataclass ``kind`` with the fields that ``argv`` names; the others keep their ``default``.

    Fields that hold a dataclass become groups ("--agent.lr"), whatever their annotation says: the default's class
    decides. Prints help and raises SystemExit(0) where ``argv`` asks for it.

    Args: flat: fields annotated ``tyro.conf.arg(name="")``, whose options carry no prefix.
    Raises: UserError with one sentence: an unknown option, a value of the wrong type, or the objection of a
        ``__post_init__``.
    """
    value, rest = _tyro(kind, argv, prog=prog, description=description, default=default, flat=flat)
    if rest:
        raise UserError(_unknown_option(rest, names(kind if default is None else default, flat=flat), prog))
    return value


def parse_known(kind: type[T], argv: Sequence[str], *, prog: str) -> T:
    """As :func:`parse`, but options it does not know are somebody else's, and so is a question for help."""
    words = [word for word in argv if word not in HELP]
    return _tyro(kind, words, prog=prog, description="", default=None, flat=())[0]


def partition(kind: type[T], argv: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """As :func:`parse_known`, and the words that it does not know, in their order."""
    return _tyro(kind, argv, prog=prog, description="", default=None, flat=())


def names(config: Any, prefix: str = "", *, flat: Collection[str] = ()) -> list[str]:
    """Every option of a dataclass or of an instance: "--agent.model.core.deter".

    >>> from worldmodel.replay.config import ReplayConfig
    >>> names(ReplayConfig())[:2]
    ['--capacity', '--batch-size']
    """
    found: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, None)
        path = prefix if field.name in flat else f"{prefix}{field.name.replace('_', '-')}."
        if dataclasses.is_dataclass(value):
            found += names(value, path)
        elif field.name != "published":
            found.append(f"--{path[:-1]}")
    return found


def closest(given: str, known: Iterable[str], n: int = 2) -> list[str]:
    """Options that may have been meant: those that end in the same word, then those that look alike.

    >>> closest("--lr", ["--agent.lr", "--train.steps"])
    ['--agent.lr']
    """
    known = list(known)
    group, _, leaf = given.lstrip("-").rpartition(".")
    split = [(name, *name.lstrip("-").rpartition(".")[::2]) for name in known]
    same = [name for name, _, last in split if last == leaf]
    beside = {last: name for name, inside, last in split if inside == group}
    near = [beside[last] for last in difflib.get_close_matches(leaf, beside, n=n, cutoff=0.6)]
    alike = near or difflib.get_close_matches(given, known, n=n, cutoff=0.7)
    return list(dict.fromkeys([*same, *alike]))[:n]


def _tyro(
    kind: type[T], argv: Sequence[str], *, prog: str, description: str, default: T | None, flat: Collection[str]
) -> tuple[T, list[str]]:
    said = io.StringIO()
    more: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, args=list(argv), prog=prog, description=description, return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,), **more,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_sentence(said.getvalue(), (*flat, kind.__name__))}; see `{prog} --help`") from None
    except ValueError as error:  # the objection of the outermost __post_init__ comes as it is
        raise UserError(str(error)) from error


def _sentence(box: str, prefixes: Collection[str] = ()) -> str:
    """The message in the box that tyro draws around its errors.

    >>> _sentence("╭─ Value error ─╮\\n│ Error parsing   │\\n│ --lr: no number │\\n│ ─────── │\\n│ help │\\n╰──╯")
    '--lr: no number'
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # the first line is the title; a terminal without UTF-8 gets a rule of "-" below it
    lines = [line.strip("│ ") for line in plain.splitlines()[1:] if not line.startswith("╰")]
    words = list(itertools.dropwhile(_is_rule, lines))
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), words)) or " ".join(plain.split())
    text = text.removeprefix("Error parsing ")
    for name in prefixes:
        text = text.removeprefix(f"{name}.").removeprefix(f"{name}: ")
    text = re.sub(r"^Missing from [^:]*: (\S+) .*", r"\1 is missing", text)
    return text.rstrip(".")


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


def _unknown_option(rest: Sequence[str], known: Sequence[str], prog: str) -> str:
    option = next((word for word in rest if word.startswith("-") and not _is_number(word)), None)
    if option is None:
        return f"unexpected word {rest[0]!r}: names come first, options start with --; see `{prog} --help`"
    given = option.partition("=")[0]
    close = closest(given.replace("_", "-"), known)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown option {given}; {hint}`{prog} --help` lists them all"


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-[0-9.][0-9.e+-]*", word) is not None
