"""The README's snippets run as printed.

```python  blocks run in the order they stand, in one folder; a first line "# name.py" makes a block that file instead.
```console lines that begin with "$ " run in the same folder.
```sh      lines take long or need a clone: their `worldmodel` commands are parsed, and their make targets exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel import listing, presets
from worldmodel.arguments import TrainOptions
from worldmodel.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in BLOCK.finditer(README.read_text())]


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "200"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = [kind for kind, _ in blocks()]
    assert set(kinds) == {"python", "console", "sh"}
    assert kinds.count("python") >= 3 and kinds.count("console") >= 3


@pytest.mark.slow
def test_python_and_console_blocks_run_in_order(tmp_path: Path) -> None:
    for kind, text in blocks():
        name = re.match(r"# (\w+\.py)\n", text)
        if kind == "python" and name is not None:
            (tmp_path / name[1]).write_text(text)
        elif kind == "python":
            run([sys.executable, "-c", text], tmp_path)
        elif kind == "console":
            for line in text.splitlines():
                assert line.startswith("$ worldmodel "), f"a console line must begin with '$ worldmodel': {line}"
                run([sys.executable, "-m", *shlex.split(line.removeprefix("$ "))], tmp_path)
    assert (tmp_path / "runs/first/learning_curve.png").is_file()
    assert list((tmp_path / "runs/first/videos").glob("episode-*.png"))


def test_long_commands_name_presets_and_options_that_exist() -> None:
    lines = [line for kind, text in blocks() if kind == "sh" for line in text.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("worldmodel ")]
    assert len(commands) >= 4
    for command in commands:
        assert command[0] == "train"
        preset = presets.find_preset(command[1])
        made, _, _ = presets.parse(preset, command[2:], TrainOptions(), prog="worldmodel train")
        assert made.published


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
