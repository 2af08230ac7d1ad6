"""The table of offline agents at a tiny size: resumed, stopped, with a cell that fails; and what its numbers mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.tool import load_tool
from worldmodel.envs.gym import GymConfig

tool = load_tool("offline_table")


class Line(gymnasium.Env[Any, Any]):
    """Four pushes on a line; what is paid is to be near its middle."""

    observation_space = gymnasium.spaces.Box(-4.0, 4.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.x, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x = self.x + np.array([0.5 * float(action[0]), 0.0], np.float32)
        self.t += 1
        return self.x, -float(abs(self.x[0])), False, self.t == 4, {}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(tool.TASKS, "line", tool.Task(env=GymConfig(id=f"{__name__}:Line"), decisions=60))
    monkeypatch.setattr(tool, "CHECKPOINTS", 3)
    words = ["--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "table.json"), "--tasks", "line"]
    return [
        *words, "--sets", "mixed", "--updates", "10", "--units", "4", "--batch", "8", "--rounds", "1", "--transitions",
        "64", "--episodes", "2", "--last", "2", "--seeds", "0", "--only", "bc", "iql", "mopo",
    ]


def test_a_table_is_made_in_parts_and_a_cell_that_fails_costs_nothing_else(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, real, made = tmp_path / "table.json", tool.learn, []

    def learn(version: str, *rest: Any) -> Any:
        made.append(version)
        if version == "iql" and made.count("iql") == 1:
            raise FloatingPointError("out of bounds")
        return real(version, *rest)

    monkeypatch.setattr(tool, "learn", learn)
    assert tool.main([*tiny, "--minutes", "0"]) == 0 and made == []
    assert "3 cells are left" in capsys.readouterr().out
    sets = json.loads(out.read_text())["sets"]["line"]
    assert sets["mixed"]["transitions"] == pytest.approx(64, abs=8) and sets["random"]["episodes"] == 16
    behaved = (tmp_path / "runs" / "line" / "sac" / "scores.jsonl").stat().st_mtime_ns

    assert tool.main(tiny) == 0 and made == ["bc", "iql", "mopo"]
    cells = json.loads(out.read_text())["cells"]
    assert cells["line/mixed/iql/0"]["failed"] == "FloatingPointError: out of bounds"
    assert "| iql | failed (1) | not run |" in out.with_suffix(".md").read_text()
    curve = cells["line/mixed/mopo/0"]["curve"]
    assert [point["updates"] for point in curve] == list(range(1, 11))
    # the mean of the last two evaluations, whatever came before
    assert ["returns" in point for point in curve] == [False] * 8 + [True] * 2
    last = [np.mean(point["returns"]) for point in curve[-2:]]
    assert cells["line/mixed/mopo/0"]["return"] == pytest.approx(np.mean(last), abs=1e-3)

    assert tool.main(tiny) == 0 and len(made) == 3
    assert tool.main([*tiny, "--retry"]) == 0 and made[3:] == ["iql"]
    assert "return" in json.loads(out.read_text())["cells"]["line/mixed/iql/0"]
    assert (tmp_path / "runs" / "line" / "sac" / "scores.jsonl").stat().st_mtime_ns == behaved

    found = json.loads(out.read_text())
    found["sets"]["line"]["random"]["return"] += 1
    (tmp_path / "other.json").write_text(json.dumps(found))
    assert tool.main([*tiny, "--out", str(tmp_path / "other.json")]) == 2
    assert "holds cells of other sets of line than" in capsys.readouterr().err

    assert tool.main([*tiny, "--updates", "20"]) == 2
    assert "holds cells of other settings (updates 10, now 20); give another --out" in capsys.readouterr().err


def test_scores_are_of_random_and_expert_and_what_clones_better_is_marked() -> None:
    means = {"random": -10.0, "medium": 0.0, "expert": 40.0, "mixed": 10.0}
    found = {
        "sets": {"reacher": {kind: {"return": x} for kind, x in means.items()}}, "settings": {"seeds": [0, 1, 2]},
        "cells": {
            "reacher/mixed/bc/0": {"return": 15.0}, "reacher/mixed/bc/1": {"return": 25.0},
            "reacher/mixed/cql/0": {"return": -10.0}, "reacher/mixed/cql/2": {"return": 40.0},
            "reacher/random/cql/0": {"failed": "ValueError: no"},
            "reacher/mixed/iql/0": {"return": 20.0},
        },
    }
    rows = tool.markdown(found).splitlines()
    assert rows[0] == "# Offline agents" and rows[2].endswith("; 5 cells are done.")
    assert "Mean returns of the data: mixed 10.0, medium 0.0, expert 40.0, random -10.0." in rows
    # 100 (15 + 10) / 50 = 50 and 70; 0 and 100, whose mean is below; 60 is not
    assert "| bc | 60 ± 10 (2) | not run | not run | not run |" in rows
    assert "| cql | 50 ± 50 (2) * | not run | not run | failed (1) |" in rows
    assert "| iql | 60 ± 0 (1) | not run | not run | not run |" in rows
