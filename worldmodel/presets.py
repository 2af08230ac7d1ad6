"""Presets by name, dotted path or file, and their options on the command line.

A preset is a function that returns a complete Run. Its own parameters come first ("--task", "--size"); every field of
the Run that it returns can be overridden after them ("--agent.lr").
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import tyro

from worldmodel import options
from worldmodel.config import Run
from worldmodel.errors import UserError, unknown

E = TypeVar("E")

DEFAULT = "quickstart"

_FLAT = ("overrides", "extra")


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A preset that comes with the package, as its source tells: nothing is imported to list it."""

    name: str
    module: str
    function: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A function that returns a Run, found by :func:`find_preset`."""

    name: str
    """As the user wrote it."""
    function: Callable[..., Run]

    @property
    def label(self) -> str:
        """A name for folders: "dmc.vision", "run" for "./my_model.py:run"."""
        return self.name.rpartition(":")[2]

    @property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """Type and default of each keyword parameter; ``inspect.Parameter.empty`` where there is no default."""
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except NameError as error:
            raise UserError(f"preset {self.name}: a parameter's type cannot be resolved ({error})") from error
        found = {}
        for name, p in inspect.signature(self.function).parameters.items():
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                fallback = str if p.default is p.empty else str | None if p.default is None else type(p.default)
                found[name] = (hints.get(name, fallback), p.default)
        return found

    def build(self, arguments: dict[str, Any]) -> Run:
        """The Run for these arguments. Raises UserError for a value that the preset or a config refuses."""
        try:
            run = self.function(**arguments)
        except ValueError as error:
            raise UserError(f"preset {self.name}: {error}") from error
        if not isinstance(run, Run):
            raise UserError(f"preset {self.name} must return a worldmodel.config.Run, got {type(run).__name__}")
        return run


@functools.cache
def shipped() -> dict[str, Shipped]:
    """The presets of ``worldmodel.configs`` by name: its public functions that are annotated ``-> Run``."""
    found = {}
    for path in sorted((Path(__file__).parent / "configs").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if node.returns is not None and ast.unparse(node.returns) == "Run":
                name = node.name if node.name == path.stem else f"{path.stem}.{node.name}"
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                module = f"worldmodel.configs.{path.stem}"
                found[name] = Shipped(name=name, module=module, function=node.name, summary=summary)
    return found


def find_preset(name: str) -> Preset:
    """The preset of that name: shipped ("dmc.vision"), by dotted path ("my_pkg.runs:fn"), or in a file
    ("./my_model.py:run"). The working directory, and a file's folder, are appended to ``sys.path``.

    Raises: UserError for one that does not exist.
    """
    where, colon, function = name.rpartition(":")
    if not colon:
        if name.endswith(".py"):
            raise UserError(f"{name} names no function; write {name}:run for its function run")
        if name not in shipped():
            raise UserError(unknown("preset", name, shipped()))
        where, function = shipped()[name].module, shipped()[name].function
    module = load_module(where)
    found = getattr(module, function, None)
    if not inspect.isfunction(found):
        own = [n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
        raise UserError(f"{where}: {unknown('function', function, own)}")
    return Preset(name=name, function=found)


@functools.cache
def planners() -> dict[str, str]:
    """Shipped planners by name, and what each is in a line: the functions of ``worldmodel.configs.planners`` that are
    annotated ``-> Planner``, read and not imported."""
    nodes = ast.parse((Path(__file__).parent / "configs" / "planners.py").read_text()).body
    found = [x for x in nodes if isinstance(x, ast.FunctionDef) and x.returns and ast.unparse(x.returns) == "Planner"]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in found}


def find_planner(name: str, **budget: int) -> Any:
    """A shipped planner ("icem"), or one of yours: "./my_planner.py:NAME", a planner or what makes one.

    Args: budget: "trajectories" and "horizon", for functions that take such; a planner that is made already keeps its
        numbers.
    Raises: UserError for one that does not exist or refuses its numbers.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon and name not in planners():
        raise UserError(unknown("planner", name, planners()))
    module = load_module(where if colon else "worldmodel.configs.planners")
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(f"{where} has no {attribute!r}; name a planner, or a function or class that makes one")
    if isinstance(found, type) or inspect.isfunction(found):
        takes = inspect.signature(found).parameters
        try:
            found = found(**{key: x for key, x in budget.items() if key in takes})
        except (TypeError, ValueError) as error:
            raise UserError(f"planner {name}: {error}") from error
    if not callable(found) or not hasattr(found, "initial"):
        raise UserError(
            f"{name} is a {type(found).__name__}, which is no planner; see Planner in worldmodel/protocols.py, and try "
            f"`worldmodel check {name}`"
        )
    return found


def planned(run: Run, planner: Any) -> Run:
    """The run, evaluated by a planner in its agent's world model. It learns as before."""
    agent = load_module("worldmodel.configs.planners").evaluated(run.agent, planner)
    return dataclasses.replace(run, agent=agent)


def load_module(where: str) -> ModuleType:
    """Import what the user named: a module ("my_pkg.runs") or a file ("./my_model.py").

    Raises: UserError where there is none, or where an installed module hides the file.
    """
    _append(Path.cwd())
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name and where.startswith(error.name):
                raise UserError(f"there is no module {error.name!r} here; check {where!r}") from error
            raise
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {where}; check the path")
    if not path.stem.isidentifier():
        raise UserError(f"{path.name} cannot be imported: its name must be a Python identifier; rename it")
    _append(path.parent)
    module = importlib.import_module(path.stem)
    if module.__file__ is None or not path.samefile(module.__file__):
        raise UserError(f"{where} is hidden by the module {path.stem!r} ({module.__file__}); rename your file")
    return module


def module_name(where: str) -> str:
    """The module that a user's word names, imported: "./my_model.py:run" -> "my_model"."""
    path = where.rpartition(":")[0] or where
    return load_module(path).__name__


def parse(preset: Preset, argv: Sequence[str], extra: E, *, prog: str) -> tuple[Run, dict[str, Any], E]:
    """The Run that a preset and a command line give, the preset's arguments, and further options of the command.

    Args: extra: a dataclass instance whose fields are options too ("--run-dir").
    Raises: UserError with one sentence; SystemExit(0) after printing help.
    """
    parameters = preset.parameters
    own: Any = extra
    taken = {field.name for field in (*dataclasses.fields(Run), *dataclasses.fields(own))} - {"env"} | set(_FLAT)
    for name in parameters.keys() & taken:
        raise UserError(f"preset {preset.name} has a parameter {name!r}, which every run has already; rename it")
    fields = [_field(name, *parameter) for name, parameter in parameters.items()]
    first = dataclasses.make_dataclass("Parameters", fields, kw_only=True)
    given = options.parse_known(first, argv, prog=prog)
    arguments = {name: getattr(given, name) for name in parameters}
    run = preset.build(arguments)
    description = _description(preset, run)
    run, extra = _overridden(run, argv, extra, fields, arguments, prog=prog, description=description)
    return run, arguments, extra


def override(run: Run, argv: Sequence[str], extra: E, *, prog: str, description: str = "") -> tuple[Run, E]:
    """``run`` with the fields that ``argv`` names, and further options of the command; as :func:`parse`."""
    return _overridden(run, argv, extra, [], {}, prog=prog, description=description)


def default_folder(preset: Preset, arguments: dict[str, Any], run: Run) -> Path:
    """runs/PRESET-TASK-SEED-TIME."""
    task = arguments.get("task") or arguments.get("env") or run.env.name
    name, task = (re.sub(r"[^A-Za-z0-9._]+", "_", word) for word in (preset.label, str(task)))
    return Path("runs") / f"{name}-{task}-{run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _overridden(
    run: Run, argv: Sequence[str], extra: E, fields: list[Any], given: dict[str, Any], *, prog: str, description: str
) -> tuple[Run, E]:
    bare = tyro.conf.arg(name="")
    own: list[Any] = [
        ("extra", Annotated[type(extra), bare], dataclasses.field()),
        ("overrides", Annotated[type(run), bare, tyro.conf.FlagConversionOff], dataclasses.field()),
    ]
    kind = dataclasses.make_dataclass("Options", [*fields, *own], kw_only=True)
    default = kind(**given, extra=extra, overrides=run)
    form = options.parse(kind, argv, prog=prog, description=description, default=default, flat=_FLAT)
    return form.overrides, form.extra


def _field(name: str, kind: Any, default: Any) -> tuple[str, Any, Any]:
    value = dataclasses.field() if default is inspect.Parameter.empty else dataclasses.field(default=default)
    return name, Annotated[kind, tyro.conf.FlagConversionOff], value


def _description(preset: Preset, run: Run) -> str:
    text = inspect.getdoc(preset.function) or ""
    return f"{text}\n\nAnswers to: {run.published}" if run.published else text


def _append(folder: Path) -> None:
    known = set()
    for entry in sys.path:
        with contextlib.suppress(OSError):
            known.add(Path(entry).resolve())
    if folder.resolve() not in known:
        sys.path.append(str(folder.resolve()))
