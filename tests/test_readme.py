"""The README's snippets run as printed (tests/snippets.py says which); make targets of ```sh blocks exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.snippets import ROOT, after, blocks, command_lines, file_name, parse
from worldmodel import listing
from worldmodel.cli import COMMANDS

README = ROOT / "README.md"


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "200"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = [kind for kind, _ in blocks(README)]
    assert set(kinds) == {"python", "console", "sh"}
    assert kinds.count("python") >= 3 and kinds.count("console") >= 3


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_python_and_console_blocks_run_in_order(tmp_path: Path) -> None:
    for kind, text in blocks(README):
        if kind == "python" and (name := file_name(text)):
            (tmp_path / name).write_text(text)
        elif kind == "python":
            run([sys.executable, "-c", text], tmp_path)
        elif kind == "console":
            for line in text.splitlines():
                assert line.startswith("$ worldmodel "), f"a console line must begin with '$ worldmodel': {line}"
                run([sys.executable, "-m", *shlex.split(line.removeprefix("$ "))], tmp_path)
    assert (tmp_path / "runs/first/learning_curve.png").is_file()
    assert list((tmp_path / "runs/first/videos").glob("episode-*.png"))


def test_long_commands_name_presets_and_options_that_exist() -> None:
    lines = [words for kind, text in blocks(README) if kind == "sh" for words in command_lines(text)]
    commands = [given for words in lines if (given := after(words, "worldmodel"))]
    assert len(commands) >= 4
    for command in commands:
        parse(command)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake (\w+)", README.read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for variable in set(re.findall(r"\b([A-Z_]+)=", README.read_text())):
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), variable


def test_the_table_of_presets_is_complete() -> None:
    named = set(re.findall(r"^\| `([\w.]+)` \|", README.read_text(), re.MULTILINE))
    assert named == set(listing.entries("presets"))


def test_commands_that_are_mentioned_exist() -> None:
    for command in set(re.findall(r"`worldmodel (\w+)", README.read_text())):
        assert command in COMMANDS


def test_files_that_are_mentioned_exist() -> None:
    for path in set(re.findall(r"`(docs/[\w/.]+|Makefile|\.ci/run)`", README.read_text())):
        assert (ROOT / path).exists(), path


def test_the_changelog_has_an_unreleased_section() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
