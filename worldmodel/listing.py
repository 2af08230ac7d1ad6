"""What there is to choose from, read from the sources: nothing is imported, so listing takes no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from worldmodel import presets

_ROOT = Path(__file__).parent

KINDS = ("presets", "envs", "cores", "objectives", "planners")


def entries(kind: str) -> dict[str, str]:
    """Name and first line of the docstring of everything of one kind of :data:`KINDS`."""
    if kind == "presets":
        found = {name: preset.summary for name, preset in presets.shipped().items()}
        return {presets.DEFAULT: found.pop(presets.DEFAULT), **found}
    if kind == "planners":
        return presets.planners()
    if kind == "envs":
        return dict(_envs())
    return dict(_components(_ROOT / "models" / kind))


def _components(folder: Path) -> Iterator[tuple[str, str]]:
    """One component per file; ``base.py`` is the seam."""
    for path in sorted(folder.glob("*.py")):
        if path.stem not in ("__init__", "base"):
            yield path.stem, _first_line(ast.parse(path.read_text()))


def _envs() -> Iterator[tuple[str, str]]:
    """Modules with a configuration that builds an environment."""
    folder = _ROOT / "envs"
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/*.py")]):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.ClassDef) and _is_env_config(node) for node in tree.body):
            if path.parent == folder:
                yield path.stem, _first_line(tree)
            else:
                yield path.parent.name, _first_line(ast.parse((path.parent / "__init__.py").read_text()))


def _is_env_config(node: ast.ClassDef) -> bool:
    methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return node.name.endswith("Config") and {"name", "build"} <= methods


def _first_line(tree: ast.Module) -> str:
    return (ast.get_docstring(tree) or "").partition("\n")[0]
