"""The pages of docs/: in the navigation, linked to what exists, true to the code; snippets run (tests/snippets.py)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.snippets import KINDS, ROOT, after, blocks, command_lines, file_name, parse
from worldmodel import cli, listing, options, presets
from worldmodel.configs.sizes import OBJECTIVES

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TRAIN = (
    "train quickstart --run-dir runs/first --train.steps 480 --train.log-steps 160 --train.train-ratio 8 "
    "--train.eval-episodes 2 --agent.imagination 2"
)
"""A run folder as the pages use one; 440 decisions end the first episodes."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Of every heading, as mkdocs makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def is_run(page: Path) -> bool:
    shown = [text for kind, text in blocks(page) if kind == "text" and text.startswith("$ ")]
    return bool(shown) or any(kind in ("python", "console") for kind, _ in blocks(page))


def test_every_page_is_in_the_navigation_and_everything_there_exists() -> None:
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES), "add the page to nav in mkdocs.yml"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name)
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: there is no such file"
        assert page.parent == ROOT or target.is_relative_to(DOCS), f"{link} leads out of docs/, mkdocs cannot follow"
        assert not anchor or anchor in anchors(target), f"{link}: {name(target)} has {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_mentioned_exist(page: Path) -> None:
    rooms = "docs|tools|tests|examples|worldmodel|agents|configs|kernels"
    for path in set(re.findall(rf"`((?:{rooms})/[\w/.]*)`", page.read_text())):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_that_are_mentioned_exist(page: Path) -> None:
    known = {option for preset in presets.shipped() for option in options.names(presets.find_preset(preset).build({}))}
    for option in set(re.findall(r"`(--(?:agent|train|env|replay)\.[\w.-]+)", prose(page))):
        assert option in known, f"{option}; perhaps {options.closest(option, known)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_command_line_accepts_what_is_not_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {kind for kind, _ in blocks(page)} <= KINDS
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in [words for kind, text in blocks(page) if kind in ("sh", "bash") for words in command_lines(text)]:
        if given := after(words, "worldmodel"):
            parse(given)
        elif given := after(words, "python"):
            source = (ROOT / given[0]).read_text()
            flags = [word for word in given[: given.index("--") if "--" in given else None] if word.startswith("--")]
            assert all(f'"{flag}"' in source for flag in flags), words
        for extra in re.findall(r"worldmodel\[(\w+)\]", " ".join(words)):
            assert extra in extras, words


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/first."""
    folder = tmp_path_factory.mktemp("docs")
    with contextlib.chdir(folder):
        assert cli.main(shlex.split(TRAIN)) == 0
    return folder


@pytest.fixture
def workplace(tmp_path: Path, first_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that folder as the working directory; what snippets import from it is forgotten afterwards."""
    shutil.copytree(first_run / "runs", tmp_path / "runs")
    (tmp_path / "examples").mkdir()
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, tmp_path / "examples")
        # another test may have imported the original, and one name is one module
        monkeypatch.delitem(sys.modules, example.stem, raising=False)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder) != ROOT / "examples"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before, threads = set(sys.modules), torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", [page for page in PAGES if is_run(page)], ids=name)
def test_snippets_run_in_order(page: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind, text in blocks(page):
        if kind == "python" and (file := file_name(text)):
            (workplace / file).write_text(text)
        elif kind == "python":
            exec(compile(text, name(page), "exec"), {"__name__": "__main__"})
        elif kind == "console":
            for line in text.splitlines():
                assert line.startswith("$ worldmodel "), f"a console line must begin with '$ worldmodel': {line}"
                code = cli.main(shlex.split(line)[2:])
                assert code == 0, f"{line}\n{capfd.readouterr()}"
        elif kind == "text" and text.startswith("$ worldmodel "):
            line, _, said = text.partition("\n")
            capfd.readouterr()
            assert cli.main(shlex.split(line)[2:]) == 2
            assert capfd.readouterr().err == said


def test_every_metric_of_a_run_is_explained_and_nothing_else_is(first_run: Path) -> None:
    table = (DOCS / "reading_the_numbers.md").read_text()
    cells = " ".join(re.findall(r"^\|([^|]+\|[^|]+)\|", table, re.MULTILINE))
    explained = set(re.findall(r"`([\w/]+)`", cells))
    rows = [json.loads(line) for line in (first_run / "runs/first/metrics.jsonl").read_text().splitlines()]
    logged = {tag for row in rows for tag in row} - {"step"}
    losses = {f"loss/{key}" for config in OBJECTIVES.values() for key in config.build(4, 4, nn.Identity).scales}
    elsewhere = {"loss/probe", "time/evaluate_ms"}  # of other objectives; where a run goes on after an evaluation
    assert logged - explained == set()
    assert {tag for tag in explained if "/" in tag} - logged - losses - elsewhere == set()


def first_column(page: str) -> set[str]:
    cells = " ".join(re.findall(r"^\| (`.+?) \|", (DOCS / page).read_text(), re.MULTILINE))
    return set(re.findall(r"`([\w.]+)`", cells))


def test_the_tables_of_kernels_and_of_presets_to_reproduce_are_complete() -> None:
    assert {path.parent.name for path in (ROOT / "kernels").glob("*/reference.py")} <= first_column("kernels.md")
    assert first_column("reproducing.md") == set(listing.entries("presets"))


@pytest.mark.parametrize(
    ("has_checkpoint", "code", "command", "is_queued"),
    [(False, 143, "train dmc.vision", True), (True, 143, "resume runs/walker-3", True), (True, 0, "resume", False)],
)
def test_the_slurm_script_resumes_and_queues_itself_again(
    has_checkpoint: bool, code: int, command: str, is_queued: bool, tmp_path: Path
) -> None:
    script = next(text for kind, text in blocks(DOCS / "cluster.md") if kind == "bash")
    (tmp_path / "job.sh").write_text(script)
    for program, leaves in (("srun", code), ("scontrol", 0)):
        (tmp_path / program).write_text(f'#!/bin/sh\necho "{program} $*" >>said\nexit {leaves}\n')
        (tmp_path / program).chmod(0o755)
    if has_checkpoint:
        (tmp_path / "runs/walker-3/checkpoints/000000004000").mkdir(parents=True)
    variables = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "7", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env={**os.environ, **variables}, timeout=60)
    said = (tmp_path / "said").read_text()
    assert done.returncode == code
    assert said.startswith(f"srun worldmodel {command}") and ("scontrol requeue 7" in said) == is_queued
