"""A trained Dreamer evaluated by a planner, and a Dreamer that plans resumed: the same run, the same checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.tiny import tiny_run, train
from worldmodel import cli, presets, runs
from worldmodel.errors import UserError
from worldmodel.planning.gumbel import GumbelMuZero

PLANNER = """
from worldmodel.planning.gumbel import GumbelMuZero

mine = GumbelMuZero(simulations=2)


def made(trajectories: int = 3) -> GumbelMuZero:
    return GumbelMuZero(simulations=trajectories)
"""


@pytest.fixture(scope="module")
def dreamer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("dreamer") / "run", tiny_run())


def test_a_checkpoint_is_evaluated_by_a_planner(dreamer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(dreamer), "--episodes", "1", "--json", "--device", "cpu"]
    assert cli.main([*words, "--planner", "gumbel", "--trajectories", "2", "--horizon", "1"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["acting"] == "gumbel" and planned["lengths"] == [55]
    assert runs.load(dreamer, device="cpu").agent.__class__.__name__ == "Dreamer", "the folder stays what it was"
    assert cli.main([*words, "--planner", "cem"]) == 2
    assert "CEM plans continuous actions, but this environment's are discrete" in capsys.readouterr().err


def test_a_planner_is_found_by_name_and_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planner_of_mine.py").write_text(PLANNER)
    monkeypatch.chdir(tmp_path)
    assert presets.find_planner("gumbel", trajectories=7, horizon=3) == GumbelMuZero(
        simulations=7, max_depth=3, gumbel_scale=0.0
    )
    assert presets.find_planner("planner_of_mine.py:mine", trajectories=9) == GumbelMuZero(simulations=2)
    assert presets.find_planner("planner_of_mine.py:made", trajectories=9, horizon=2) == GumbelMuZero(simulations=9)
    for name, said in (
        ("icme", "unknown planner 'icme'; did you mean 'icem'"),
        ("planner_of_mine.py:nothing", "has no 'nothing'; name a planner"),
        ("planner_of_mine.py:__name__", "which is no planner"),
    ):
        with pytest.raises(UserError, match=said):
            presets.find_planner(name)
    with pytest.raises(UserError, match="planner icem: horizon must be at least 1, got 0"):
        presets.find_planner("icem", horizon=0)


def test_a_dreamer_that_plans_resumes_bit_for_bit(tmp_path: Path) -> None:
    run = tiny_run("dreamer_plans.toys")
    few = GumbelMuZero(simulations=2)
    run = replace(run, agent=replace(run.agent, collect=few, evaluate=few))
    whole = train(tmp_path / "whole", run)
    half = train(tmp_path / "half", replace(run, train=replace(run.train, steps=8)))
    runs.resume(half, change=lambda old: replace(old, train=replace(old.train, steps=16)), live=False)
    one, other = (runs.load(folder, device="cpu") for folder in (whole, half))
    assert one.checkpoint.step == other.checkpoint.step == 16
    mine, theirs = one.agent.state_dict(), other.agent.state_dict()
    assert mine.keys() == theirs.keys() and all(bool((mine[k] == theirs[k]).all()) for k in mine)
    carry = one.checkpoint.tensors("carry")
    assert all(bool((carry[k] == x).all()) for k, x in other.checkpoint.tensors("carry").items())
