"""The comparison of ensembles: what both sides are given is the same data, and what is written names what was timed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tool import load_tool
from worldmodel.models.ensemble import EnsembleModelConfig

tool = load_tool("bench_ensemble")


def test_the_peer_gets_the_numbers_that_ours_learns_from(tmp_path: Path) -> None:
    data, config = tool.transitions(20), EnsembleModelConfig(members=3, elites=2, units=(8,))
    args = argparse.Namespace(device="cpu", threads=1, batch=4, rounds=2)
    asked = tool.request(config, data, tmp_path, args)
    file = np.load(asked["data"])
    assert np.array_equal(file["inputs"], np.concatenate([file["observations"], file["actions"]], 1))
    changes = file["next_observations"] - file["observations"]
    assert np.allclose(file["targets"], np.concatenate([changes, file["rewards"]], 1))
    assert file["rewards"].shape == (20, 1) and np.array_equal(file["observations"], data.x.numpy())
    assert (asked["features"], asked["actions"]) == (file["observations"].shape[1], file["actions"].shape[1])
    assert [asked[key] for key in ("units", "members", "elites", "batch", "rounds")] == [[8], 3, 2, 4, 2]


def test_both_rows_of_ours_learn() -> None:
    data = tool.transitions(60)
    torch.manual_seed(0)
    model = EnsembleModelConfig(members=3, elites=2, units=(8,), max_rounds=1).build(tool.SPEC)
    for call in tool.ours(model, data, 8, "cpu").values():
        before = [p.detach().clone() for p in model.parameters()]
        call()
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_without_a_peer_ours_is_timed_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ensemble.json"
    words = "--transitions 100 --batch 8 --rounds 1 --blocks 2 --seconds 0.05 --out"
    monkeypatch.setattr("sys.argv", ["bench_ensemble.py", *words.split(), str(out)])
    threads = torch.get_num_threads()
    tool.main()
    torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert set(found["rows"]) == {"update", "rounds"} and found["ratios"] == {}
    assert all(row["ours"]["median_ms"] > 0 for row in found["rows"].values())
    assert (found["transitions"], found["batch"], found["rounds"]) == (100, 8, 1)
    assert found["command"].endswith(str(out)) and "update" in capsys.readouterr().out
