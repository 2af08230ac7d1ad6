"""What a sweep consists of: a job for every setting and seed, and how far each has come."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worldmodel import config, presets
from worldmodel.arguments import TrainOptions
from worldmodel.errors import UserError
from worldmodel.train.log import read_metrics

State = Literal["new", "unfinished", "finished"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep; plain data, so that it can travel to another machine."""

    name: str
    folder: Path
    preset: str
    words: tuple[str, ...]
    """What follows ``worldmodel train PRESET``, but for the folder."""
    settings: dict[str, str]
    """What tells it from the other jobs, besides the seed: {"agent.lr": "1e-4"}."""
    seed: int
    document: dict[str, Any] = field(repr=False)
    """Its configuration as JSON."""

    @property
    def log(self) -> Path:
        """What the run says; beside its folder."""
        return self.folder.with_name(f"{self.name}.log")

    def command(self) -> list[str]:
        """Train, or go on where there is a checkpoint; decided when it is called."""
        program = [sys.executable, "-m", "worldmodel"]
        if not _checkpoints(self.folder):
            return [*program, "train", self.preset, *self.words, "--run-dir", str(self.folder)]
        return [*program, "resume", str(self.folder), *(["--allow", self.preset] if ":" in self.preset else [])]


def parse_seeds(text: str) -> list[int]:
    """Seeds as people write them.

    >>> parse_seeds("0..3"), parse_seeds("0,7,3..4")
    ([0, 1, 2, 3], [0, 7, 3, 4])

    Raises: UserError.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part.strip())
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"--seeds must be like 3, 0..4 or 0,2,5, got {text!r}")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text!r} names a seed twice")
    return seeds


def parse_grid(given: Iterable[str]) -> list[dict[str, str]]:
    """Every combination of ``key=a,b,c``; one without settings where nothing is given.

    >>> parse_grid(["agent.lr=1e-4,3e-4", "task=catch"])
    [{'agent.lr': '1e-4', 'task': 'catch'}, {'agent.lr': '3e-4', 'task': 'catch'}]

    Raises: UserError.
    """
    axes: dict[str, list[str]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        choices = [value.strip() for value in values.split(",")]
        if not equals or not key or not all(choices):
            raise UserError(f"--set must be like agent.lr=1e-4,3e-4, got {text!r}")
        if key in axes:
            raise UserError(f"--set names {key} twice; write all its values in one")
        axes[key.lstrip("-")] = choices
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def make_jobs(
    preset: str, common: Sequence[str], settings: Iterable[Mapping[str, str]], seeds: Sequence[int], out: Path
) -> list[Job]:
    """A job for every different setting and seed, each parsed as ``worldmodel train`` would, so that what is wrong is
    said before anything begins.

    Raises: UserError.
    """
    jobs: dict[str, Job] = {}
    found, prog = presets.find_preset(preset), f"worldmodel train {preset}"
    for chosen in settings:
        varied = itertools.chain.from_iterable((f"--{key}", value) for key, value in chosen.items())
        mine = [*common, *varied]
        for seed in seeds:
            words = [*mine, "--seed", str(seed)]
            run, _, _ = presets.parse(found, words, TrainOptions(), prog=prog)
            label = "_".join([*(f"{key}={value}" for key, value in chosen.items()), f"seed={seed}"])
            name = re.sub(r"[^A-Za-z0-9._=+-]", "-", label)
            if name in jobs and jobs[name].settings != chosen:
                raise UserError(f"two settings are called {name}; leave one out")
            jobs[name] = Job(
                name=name, folder=out / name, preset=preset, words=tuple(words), settings=dict(chosen), seed=seed,
                document=config.to_json(run),
            )
    return list(jobs.values())


def find_state(job: Job) -> State:
    """How far a job has come, by what its folder holds.

    Raises: UserError where the folder holds another run.
    """
    if not (job.folder / config.CONFIG).is_file():
        return "new"
    there, asked = (config.flatten(x) for x in (config.read_document(job.folder)["run"], job.document))
    differs = sorted({key for key in there | asked if there.get(key) != asked.get(key)} - config.RESUMABLE)
    if differs:
        said = ", ".join(f"{key} {there.get(key)} there, {asked.get(key)} asked" for key in differs[:3])
        raise UserError(f"{job.folder} holds another run ({said}); give another --out")
    reached, scores = _checkpoints(job.folder), evaluations(job.folder)
    if not reached:
        return "new"
    if not scores or reached[-1] < scores[-1][0]:
        return "unfinished"
    step, return_ = scores[-1]
    wished = there.get("train.stop_at_return")
    return "finished" if step >= there["train.steps"] or (wished is not None and return_ >= wished) else "unfinished"


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """(decisions, mean return by mode) of every evaluation of a run so far."""
    path = folder / "scores.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return [(int(row["step"]), float(row["return"])) for row in rows if row.get("kind") == "eval_mode"]


def _checkpoints(folder: Path) -> list[int]:
    names = [path.name for path in (folder / "checkpoints").glob("[0-9]*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())
