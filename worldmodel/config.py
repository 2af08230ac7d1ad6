"""A run is one frozen value. Here: what it holds, its JSON, and what a resume may change of it.

The JSON is data: every nested dataclass says its class as "module:Class", and reading constructs frozen dataclasses of
this package (and of modules that the caller names) from plain values; nothing else is imported, called or built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from worldmodel.errors import CheckpointError, UserError, unknown
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides a run; config.json in the run folder is this, resolved."""

    env: Any
    """An EnvConfig (``worldmodel.specs``)."""
    agent: Any
    """An AgentConfig: ``build(spec, device) -> Agent``."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: str = ""
    """A dataset to learn from: a path, or FORMAT:PATH (docs/data.md); of several tasks one for each, between commas.
    Without an environment being stepped, or beside what is lived, by ``replay.data_fraction``; empty for none."""
    init: str = ""
    """A run folder, or one checkpoint in it, whose agent this one begins as; empty to begin with nothing learned."""
    seed: int = 0
    """Seeds environments, networks, exploration and replay."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes the GPU where there is one."""
    published: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    """The table this preset answers to, and the figures of this task in it; empty where nobody published any."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.data and not self.replay.data_fraction:
            raise ValueError("replay.data_fraction is 0, so that nothing would be learned from --data; leave one away")
        if self.is_offline and self.train.min_updates:
            raise ValueError("train.min_updates is of runs that step environments; offline, train.steps counts updates")

    @property
    def is_offline(self) -> bool:
        """Whether everything is learned from data, and no environment is stepped but to evaluate."""
        return bool(self.data) and self.replay.data_fraction == 1


RESUMABLE = frozenset({
    "train.steps", "train.stop_at_return", "train.eval_every", "train.eval_episodes", "train.eval_envs",
    "train.log_every", "train.log_steps", "train.checkpoint_every", "train.checkpoint_steps",
    "train.keep_checkpoints", "train.max_bad_updates", "train.compile", "train.threads", "train.wandb",
    "replay.memory_budget", "device", "published", "data",
    "agent.extrinsic", "agent.intrinsic", "train.min_updates",
})
"""What a resume may change; everything else decides what is learned, and stays. The last line is for a second phase:
another mixture of rewards, learned from what the first one explored."""


CONFIG = "config.json"
"""The file of a run folder that says what the run is."""


# JSON


def read_document(run_dir: Path) -> dict[str, Any]:
    """The content of config.json: "run" as :func:`to_json` wrote it, and what is said about it.

    Raises: UserError when it is not a run folder, CheckpointError when the file is damaged.
    """
    path = Path(run_dir) / CONFIG
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"{run_dir} is not a run folder: it has no {CONFIG}; give the --run-dir of a `worldmodel train`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it from a copy") from error
    if not isinstance(document, dict) or not isinstance(document.get("run"), dict):
        raise CheckpointError(f'{path} is damaged (no object "run"); restore it from a copy')
    return document


def to_json(run: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON values; each nested dataclass carries its "type".

    >>> to_json(ReplayConfig(capacity=100))["capacity"], to_json(ReplayConfig())["type"]
    (100, 'worldmodel.replay.config:ReplayConfig')

    Raises: TypeError where a field holds anything but numbers, text, None, tuples and frozen dataclasses.
    """
    return _encode(run, type(run).__name__)


def from_json(document: dict[str, Any], *, allow: Sequence[str] = ()) -> Any:
    """The value that :func:`to_json` wrote; lists come back as tuples, unnamed fields with their defaults.

    Args: allow: modules outside of this package whose frozen dataclasses may be made ("my_pkg.models"). They are
        imported, so name only what you trust.
    Raises: CheckpointError for an unknown type or field, a value of the wrong type, a missing field.
    """
    return _decode(document, "run", Any, frozenset(allow))


def config_hash(run: Run) -> str:
    """16 hexadecimal digits of everything that decides the run (``published`` is only about it)."""
    document = to_json(run)
    document.pop("published", None)
    values = {path: _canonical(leaf) for path, leaf in flatten(document).items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


# Changes


def diff(old: Any, new: Any) -> list[str]:
    """Changed values, one line each, as on the command line.

    >>> diff(ReplayConfig(length=32, capacity=99), ReplayConfig(length=64, capacity=99))
    ['length: 32 -> 64']
    """
    before, after = flatten(to_json(old)), flatten(to_json(new))
    paths = list(dict.fromkeys([*before, *after]))
    said = [(path, _said(before, path), _said(after, path)) for path in paths]
    return [f"{path}: {was} -> {becomes}" for path, was, becomes in said if was != becomes]


def validate_resume(old: Run, new: Run) -> None:
    """Refuse a resume that would change more than length, cadence and machine.

    Raises: CheckpointError with the list of refused changes.
    """
    refused = [line for line in diff(old, new) if line.partition(":")[0] not in RESUMABLE]
    if refused:
        raise CheckpointError(
            f"a resumed run must stay the run it was, but this would change {'; '.join(refused)}; "
            f"leave these out, or start a new run with `worldmodel train`"
        )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON objects as one, by dotted path.

    >>> flatten({"train": {"steps": 5}, "seed": 0})
    {'train.steps': 5, 'seed': 0}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    parts = (flatten(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items())
    return {path: leaf for part in parts for path, leaf in part.items()}


def _said(flat: dict[str, Any], path: str) -> str:
    return json.dumps(_canonical(flat[path])) if path in flat else "(not there)"


def _canonical(value: Any) -> Any:
    """128.0 and 128 are the same number to every field that may hold either."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Encoding


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _is_frozen(type(value)):
        kind = type(value)
        if "." in kind.__qualname__:
            raise TypeError(f"{where} is a {kind.__qualname__}, which is not at the top of its module; move it there")
        names = [f.name for f in dataclasses.fields(value) if f.init]
        fields = {name: _encode(getattr(value, name), f"{where}.{name}") for name in names}
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    raise TypeError(
        f"{where} is a {type(value).__name__}; a configuration holds numbers, text, None, tuples and frozen dataclasses"
    )


def _is_frozen(kind: type) -> bool:
    return bool(getattr(kind, "__dataclass_params__").frozen)  # noqa: B009  (the name is dataclasses' own)


# Decoding

REMOVED: dict[str, dict[str, Any]] = {"LatentModelConfig": {"foresight_scale": 0.0}}
"""Fields that classes had once, with the value that meant nothing: runs that held it are read as before."""


def _decode(value: Any, where: str, hint: Any, allow: frozenset[str]) -> Any:
    if isinstance(value, dict):
        made = _construct(value, where, allow)
    elif isinstance(value, list):
        inner = [h for h in typing.get_args(hint) if h is not Ellipsis] if typing.get_origin(hint) is tuple else []
        hints = inner if len(inner) == len(value) else [inner[0] if len(inner) == 1 else Any] * len(value)
        made = tuple(_decode(item, f"{where}[{i}]", hints[i], allow) for i, item in enumerate(value))
    else:
        made = value
    if not _fits(made, hint):
        raise CheckpointError(f"{where} must be {_name(hint)}, got {value!r}; the configuration was changed or damaged")
    return made


def _construct(document: dict[str, Any], where: str, allow: frozenset[str]) -> Any:
    kind = _find_class(document.get("type"), where, allow)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    hints = _hints(kind)
    given = {key: value for key, value in document.items() if key != "type"}
    for key, value in REMOVED.get(kind.__name__, {}).items():
        if key not in fields and given.get(key) == value:
            del given[key]
    for key in given:
        if key not in fields:
            raise CheckpointError(f"{where}: {unknown(f'field of {kind.__name__}', key, fields)}")
    values = {key: _decode(value, f"{where}.{key}", hints.get(key, Any), allow) for key, value in given.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} is no valid {kind.__name__}: {error}") from error


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:  # a foreign class with annotations that exist for type checkers only: nothing to check against
        return {}


def _find_class(tag: Any, where: str, allow: frozenset[str]) -> type:
    """The frozen dataclass that a tag names, if it may be made. Only then is a module imported."""
    module, _, name = tag.partition(":") if isinstance(tag, str) else ("", "", "")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise CheckpointError(f'{where} needs a "type" like "module:Class", got {tag!r}; this is not a configuration')
    ours = module.startswith("worldmodel.") and not module.endswith("__main__")
    if not ours and module not in allow:
        raise CheckpointError(
            f"{where} is a {tag}, which is not part of worldmodel; if you trust that module, add --allow {module}"
        )
    try:
        found = getattr(sys.modules.get(module) or importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{where} is a {tag}, but there is no module {error.name!r} here") from error
    if isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == module and _is_frozen(found):
        return found
    raise CheckpointError(f"{where} is a {tag}, but there is no frozen dataclass of that name")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a decoded value is of the annotated type; what we cannot judge (protocols, generics) fits."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Annotated:
        return _fits(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if hint is None or hint is type(None):
        return value is None
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(args) == len(value) and all(_fits(item, arg) for item, arg in zip(value, args))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str) or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return isinstance(value, hint)
    return True


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
