"""The world model of ``examples/my_model.py`` conforms, learns and comes back; so do the parts that the docs write."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from worldmodel import cli

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = str(ROOT / "examples" / "my_model.py")
TINY = shlex.split(
    "--train.steps 24 --train.num-envs 2 --train.train-ratio 2 --train.eval-every 0 --train.eval-episodes 1 "
    "--train.eval-envs 1 --train.threads 1 --train.log-steps 12 --replay.capacity 200 --replay.batch-size 2 "
    "--replay.length 4 --replay.min-starts 2 --device cpu"
)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_example_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", f"{EXAMPLE}:MyModelConfig"]) == 0, capsys.readouterr().out
    assert "MyModelConfig conforms" in capsys.readouterr().out


def test_the_example_learns_and_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", f"{EXAMPLE}:run", "--run-dir", str(tmp_path / "run"), "--agent.model.memory", "16", *TINY]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert re.search(r"24 decisions, [1-9]\d* updates", capsys.readouterr().out)
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", "1", "--allow", EXAMPLE]) == 0
    assert "toy/catch at 24 decisions" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("page", ["your_own_model", "your_own_env"])
def test_snippets_of_the_docs_run_as_printed(page: str, tmp_path: Path) -> None:
    """```python blocks are files by their first line, or are run; ```console lines are run, all in one folder."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    environment = {**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "200"}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ran = 0
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", block)
        if kind == "python" and name is not None:
            (tmp_path / name[1]).write_text(block)
            continue
        lines = [line.removeprefix("$ ") for line in block.splitlines()] if kind == "console" else []
        for words in [["-c", block]] if kind == "python" else [["-m", *shlex.split(line)] for line in lines]:
            words = [sys.executable, *words]
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            ran += 1
    assert ran >= 2
