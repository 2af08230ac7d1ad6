"""Runs of a second, through the command line, and what is compared of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldmodel import cli
from worldmodel.train.checkpoint import Checkpoint, Checkpoints

STEPS = 48
WORDS = [
    "quickstart", "--train.num-envs", "2", "--train.train-ratio", "4", "--train.eval-every", "24",
    "--train.eval-episodes", "1", "--train.eval-envs", "1", "--train.threads", "1", "--train.checkpoint-steps", "16",
    "--train.log-steps", "8", "--train.keep-checkpoints", "9", "--replay.capacity", "80", "--replay.batch-size", "2",
    "--replay.length", "4", "--replay.min-starts", "2", "--device", "cpu", "--train.steps", str(STEPS),
]  # fmt: skip


def train(run_dir: Path, *words: str) -> int:
    """The exit code of a run that lasts about a second."""
    return cli.main(["train", *WORDS, *words, "--run-dir", str(run_dir)])


def resume(run_dir: Path, *words: str) -> int:
    """The exit code of going on with it."""
    return cli.main(["resume", str(run_dir), *words])


def newest(run_dir: Path) -> Checkpoint:
    """The newest valid checkpoint; that all are valid is part of what is tested."""

    def fail(sentence: str) -> None:
        raise AssertionError(sentence)

    return Checkpoints(run_dir / "checkpoints").latest(on_skip=fail)


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Rows of a log without what measures time."""
    read = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    return [{key: x for key, x in row.items() if not key.startswith(("time/", "fps/"))} for row in read]


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything that two runs which learned the same share, bit for bit."""
    checkpoint = newest(run_dir)
    # the trainer's own notes count bytes of logs, whose rows hold times
    digests = {name: entry.sha256 for name, entry in checkpoint.files.items() if name != "trainer.json"}
    logs = {name: rows(run_dir, name) for name in ("metrics.jsonl", "scores.jsonl")}
    return {"step": checkpoint.step, "files": digests, **logs}
