"""A run that goes on from a checkpoint becomes what it would have become, with every core and objective."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults import tiny

AGENTS = {
    "rssm": ["--agent.imagination", "2"],
    "mamba": ["--core", "mamba", "--agent.imagination", "2"],
    "transformer": ["--core", "transformer", "--agent.imagination", "2"],
    "dynamics": ["--task", "glide", "--objective", "barlow", "--agent.imagination", "2"],
}
"""Options of ``worldmodel train quickstart`` that make each."""


@pytest.mark.parametrize("agent", AGENTS)
def test_fifty_updates_after_a_checkpoint_are_those_of_the_run_that_was_not_left(agent: str, tmp_path: Path) -> None:
    whole, left = tmp_path / "whole", tmp_path / "left"
    steps = ["--train.steps", "128", "--train.checkpoint-steps", "24", "--train.eval-every", "64"]
    assert tiny.train(whole, *AGENTS[agent], *steps) == 0
    shutil.copytree(whole, left)
    for checkpoint in sorted((left / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    before = tiny.newest(left)
    assert tiny.resume(left) == 0
    assert tiny.newest(left).meta["updates"] - before.meta["updates"] >= 50 and before.meta["updates"] > 0
    assert tiny.outcome(left) == tiny.outcome(whole)
