"""The house rules that a machine can check: who imports whom, and what every file keeps to."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worldmodel.protocols import (
    ActionDistribution,
    Agent,
    EnvPool,
    Planner,
    PlanningObjective,
    Replay,
    ValueLearner,
    WorldModel,
)
from worldmodel.specs import Env, EnvConfig

ROOT = Path(__file__).parent.parent
LINKED = ("agents", "configs", "kernels")

SOURCES = sorted(
    [*(p for p in (ROOT / "worldmodel").rglob("*.py") if p.relative_to(ROOT / "worldmodel").parts[0] not in LINKED)]
    + [p for room in LINKED for p in (ROOT / room).rglob("*.py")]
)

FOUNDATION = frozenset({"specs", "types", "protocols", "tree", "errors", "rng", "ranks"})
"""Imported by everybody, and importing nothing but each other, torch and numpy."""

ALLOWED: dict[str, frozenset[str]] = {
    "specs": frozenset(),
    "errors": frozenset(),
    "tree": frozenset(),
    "rng": frozenset(),
    "ranks": frozenset(),
    "types": frozenset({"specs", "tree"}),
    "protocols": frozenset({"specs", "types", "tree"}),
    "kernels": frozenset({"kernels", "errors"}),
    "nn": FOUNDATION | {"nn", "distributions", "kernels"},
    "distributions": FOUNDATION | {"kernels"},
    "returns": FOUNDATION | {"kernels"},
    "uncertainty": FOUNDATION | {"distributions"},
    "rollout": FOUNDATION,
    "models": FOUNDATION | {"models", "nn", "distributions", "kernels"},
    "planning": FOUNDATION | {"planning", "rollout", "uncertainty", "returns"},
    "envs": FOUNDATION | {"envs"},
    "data": frozenset({"specs", "errors", "data"}),
    "replay": FOUNDATION | {"data", "replay"},
    "storage": frozenset({"errors"}),
    "train": FOUNDATION | {"train", "storage"},
    "check": FOUNDATION | {"check", "envs", "presets"},
    "agents": FOUNDATION
    | {"agents", "nn", "models", "returns", "rollout", "planning", "distributions", "uncertainty", "kernels"},
    "configs": FOUNDATION
    | {"configs", "config", "agents", "models", "nn", "planning", "envs", "replay", "train", "distributions"}
    | {"published"},
    "config": FOUNDATION | {"replay", "train"},
    "options": frozenset({"errors"}),
    "arguments": frozenset({"data"}),
    "presets": frozenset({"errors", "config", "options"}),
    "listing": frozenset({"presets"}),
    "doctor": FOUNDATION | {"envs", "kernels", "replay"},
    "info": FOUNDATION | {"config", "replay", "train"},
    "trained": FOUNDATION | {"config", "envs", "train"},
    "published": frozenset({"errors"}),
    "sweep": frozenset({"errors", "arguments", "sweep", "config", "presets", "train"}),
    "report": FOUNDATION | {"", "report", "config", "published", "train"},
    "runs": FOUNDATION | {"config", "data", "envs", "replay", "train", "trained", "storage"},
    "cli": FOUNDATION
    | {"", "arguments", "bench", "check", "config", "datasets", "doctor", "export", "info", "listing", "options"}
    | {"presets", "report", "runs", "sweep", "train"},
    "bench": FOUNDATION
    | {"bench", "kernels", "nn", "config", "runs", "envs", "replay", "train", "planning", "presets", "report"}
    | {"storage"},
    "collect": FOUNDATION | {"config", "data", "envs", "replay", "runs"},
    "datasets": frozenset({"errors", "arguments", "collect", "data", "envs", "options", "presets"}),
    "__main__": frozenset({"cli"}),
    "dreams": FOUNDATION | {"replay", "runs", "train", "trained"},
    "export": FOUNDATION | {"config", "runs", "train", "trained"},
    "": frozenset({"dreams", "runs"}),
}
"""By room (first name below worldmodel): the rooms it may import. A new room is added here on purpose."""

TORCH_FREE = (
    "specs", "errors", "options", "arguments", "presets", "listing", "cli", "config", "__main__", "envs", "published",
    "data", "datasets", "",
)
"""Rooms that do not import torch when they are imported; envs/pool.py, the parent's side of a pool, may."""


def place(path: Path) -> tuple[str, ...]:
    """Names below worldmodel: ("train", "loop") for worldmodel/train/loop.py, () for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "worldmodel" else parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def room(path: Path) -> str:
    return (*place(path), "")[0]


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST, *, eager: bool = False) -> Iterator[str]:
    """Dotted names of everything imported; with ``eager`` only what importing the file itself imports."""
    for node in ast.iter_child_nodes(tree):
        if eager and (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(node)):  # type: ignore[arg-type]
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node, eager=eager)


def ours(path: Path) -> set[str]:
    """What a file imports of this package, below worldmodel."""
    names = imports(ast.parse(path.read_text()))
    return {name.removeprefix("worldmodel").removeprefix(".") for name in names if name.split(".")[0] == "worldmodel"}


def ident(path: Path) -> str:
    return str(path.relative_to(ROOT))


def of(*rooms: str) -> Any:
    """Run a test once for every file of these rooms, or of all."""
    chosen = [path for path in SOURCES if not rooms or room(path) in rooms]
    return pytest.mark.parametrize("source", chosen, ids=ident)


@of()
def test_every_import_points_down(source: Path) -> None:
    here = room(source)
    assert here in ALLOWED, f"{here} is a new room: say in ALLOWED what it may import, and in docs/architecture.md why"
    known = {room(path) for path in SOURCES}
    for name in ours(source):
        first = name.split(".")[0]
        target = first if first in known else ""  # a name of worldmodel/__init__.py
        assert target in ALLOWED[here] or target == here, f"{ident(source)} must not import worldmodel.{name}"


def test_the_engine_names_no_model_and_no_agent() -> None:
    for engine in ("train", "replay", "envs", "planning", "runs", "rollout", "bench"):
        assert not ALLOWED[engine] & {"models", "agents", "configs"}


@of("agents")
def test_an_agent_never_imports_another_agent(source: Path) -> None:
    here = place(source)
    for name in ours(source):
        parts = name.split(".")
        if parts[0] == "agents":
            assert parts[1] in (here[1], "values"), f"{ident(source)} must not import {name}: share it in agents/values"


@of("kernels")
def test_kernels_import_torch_and_triton_alone(source: Path) -> None:
    for name in imports(ast.parse(source.read_text())):
        top = name.split(".")[0]
        comparison = top == "mamba_ssm" == source.stem
        assert top in {"torch", "triton", "worldmodel"} or top in sys.stdlib_module_names or comparison, name


@pytest.mark.parametrize("package", ["mamba_ssm", "ale_py", "minari", "h5py", "wandb", "onnxruntime"])
def test_optional_packages_are_imported_in_one_file_and_lazily(package: str) -> None:
    users = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if any(name.split(".")[0] == package for name in imports(tree)):
            users.append(ident(path))
        eager = {name.split(".")[0] for name in imports(tree, eager=True)}
        assert package not in eager, f"{ident(path)} imports {package} when it is imported"
    assert len(users) <= 1 + (package == "ale_py"), users


@of(*TORCH_FREE)
def test_command_line_and_env_workers_start_without_torch(source: Path) -> None:
    eager = {name.split(".")[0] for name in imports(ast.parse(source.read_text()), eager=True)}
    assert place(source) == ("envs", "pool") or not eager & {"torch", "torchvision"}


def test_rooms_have_no_top_init_and_three_relative_links() -> None:
    for name in LINKED:
        assert not (ROOT / name / "__init__.py").exists(), f"{name}/__init__.py would shadow foreign packages"
        link = ROOT / "worldmodel" / name
        assert link.is_symlink() and link.readlink() == Path("..") / name
    assert (ROOT / "worldmodel" / "scores").readlink() == Path("..") / "tools" / "scores"


@of(*(room for room in ALLOWED if room != "cli"))
def test_library_code_prints_nothing(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not is_print, f"{ident(source)}:{node.lineno} prints"  # type: ignore[attr-defined]


@of()
def test_no_file_is_longer_than_500_lines(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= 500


@of()
def test_nothing_is_called_utils(source: Path) -> None:
    assert not {"utils", "util", "helpers", "misc", "common"} & set(place(source)) or place(source)[0] == "kernels"


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Public functions of a module, and public methods and ``__init__`` of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and (not item.name.startswith("_") or item.name == "__init__"):
                    yield item


@of()
def test_public_functions_are_annotated(source: Path) -> None:
    for function in public_functions(ast.parse(source.read_text())):
        where = f"{ident(source)}:{function.lineno} {function.name}"
        assert function.returns is not None, f"{where}: no return annotation"
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
            assert argument.annotation is not None or argument.arg in ("self", "cls"), f"{where}: {argument.arg}"


@of()
def test_exceptions_are_not_swallowed(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ExceptHandler):
            where = f"{ident(source)}:{node.lineno}"
            assert node.type is not None, f"{where}: except without a type"
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            assert not (broad and all(isinstance(item, ast.Pass) for item in node.body)), f"{where}: swallowed"


def test_the_map_names_what_exists_and_every_module_of_the_engine() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:worldmodel|agents|configs|kernels|tests)/[\w./]*)`", text))
    assert named and [name for name in sorted(named) if not (ROOT / name).exists()] == []
    engine = [ROOT / "worldmodel", ROOT / "worldmodel" / "train"]
    modules = {str(p.relative_to(ROOT)) for folder in engine for p in folder.glob("*.py") if p.name[:2] != "__"}
    assert modules - named == set()


@pytest.mark.parametrize("seam", [
    WorldModel, Agent, ValueLearner, ActionDistribution, Planner, PlanningObjective, EnvPool, Replay, Env, EnvConfig,
])
def test_the_map_lists_every_method_of_a_seam(seam: type) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    entry = re.search(rf"\*\*{seam.__name__}\b.*?(?=\n- |\n\n|[;.] \*\*)", text, re.DOTALL)
    assert entry, f"docs/architecture.md does not list {seam.__name__}"
    listed = set(re.findall(r"`(\w+)`", entry[0]))
    methods = {name for name in vars(seam) if not name.startswith("_")} | ({"__len__", "__call__"} & set(vars(seam)))
    members = methods | set(vars(seam).get("__annotations__", {}))
    assert listed == members
