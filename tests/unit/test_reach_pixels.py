"""``tools/reach_pixels.py``: its data, its oracle, and that it runs and goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tool import load_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> Any:
    torch.set_num_threads(1)
    return load_tool("reach_pixels")


def test_data_is_whole_episodes_with_actions_before_what_they_led_to(tool: Any) -> None:
    data, truth = tool.played(0, random=0.2, episodes=3)
    assert data.reward.shape == (3, 51)
    assert torch.equal(data.prev_action[:, 1:], data.action[:, :-1])
    assert data.is_first[:, 0].all() and not data.is_first[:, 1:].any()
    assert data.is_last[:, -1].all() and not data.is_last[:, :-1].any()
    # a reward arrives with the state that it is of
    far = np.linalg.norm(truth["target"] - truth["place"], axis=-1)[:, 1:]
    expected = np.exp(np.log(0.1) * (np.maximum(far - 0.05, 0) / 0.5) ** 2)
    np.testing.assert_allclose(data.reward[:, 1:].numpy(), expected, atol=1e-5)


def test_an_expert_who_is_there_earns_one_for_ever(tool: Any) -> None:
    place = np.full((1, 2), 0.5)
    worth = tool.experts_worth({"place": place, "speed": np.zeros((1, 2)), "target": place}, discount=0.9)
    assert float(worth) == pytest.approx((1 - 0.9**tool.FAR) / 0.1, rel=1e-4)


def test_it_runs_and_goes_on(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "FAR", 2)
    monkeypatch.setattr(tool.played, "__kwdefaults__", {"episodes": 4})
    words = ["--folder", str(tmp_path), "--seeds", "0", "--model-updates", "2", "--updates", "5"]
    words += ["--out", str(tmp_path / "out.json"), "--variants", "base", "patch"]
    monkeypatch.setattr(sys, "argv", ["reach_pixels.py", *words])
    assert tool.main() == 0 and capsys.readouterr().out.count("return") == 2
    assert tool.main() == 0 and not capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["reach_pixels.py", *words, "--random", "0.5"])
    with pytest.raises(SystemExit):
        tool.main()
    assert "is of other settings" in capsys.readouterr().err
    found = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert {run["variant"] for run in found} == {"base", "patch"}
    assert all(len(run["curve"]) == 5 and np.isfinite(run["curve"][-1]["bias"]) for run in found)
