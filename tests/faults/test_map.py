"""The map from faults to tests names what exists, and the page of results says what the files say."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.tool import load_tool

ROOT = Path(__file__).resolve().parents[2]
tool = load_tool("faults")

ELSEWHERE = {"F17"}
"""Needs a GPU."""


@cache
def names_in(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_on_the_map() -> None:
    assert set(tool.GUARDS) | ELSEWHERE == {f"F{number}" for number in range(1, 24)}
    assert all(tests or fault in tool.INJECTED for fault, (_, tests) in tool.GUARDS.items())


@pytest.mark.parametrize("fault", tool.GUARDS)
def test_every_fault_has_its_tests(fault: str) -> None:
    for guard in tool.GUARDS[fault][1]:
        path, _, name = guard.partition("::")
        assert name.startswith("test_") and name in names_in(path), f"{fault}: {guard} is gone"


def test_the_page_says_what_was_measured() -> None:
    assert tool.main(["--check"]) == 0, "run python tools/faults.py --page"
