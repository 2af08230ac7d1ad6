"""F14: a damaged segment of replay is left out; the rest is sampled evenly, and what is sampled is what was lived."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.faults.tiny import STEPS, newest, resume, train
from tests.unit.test_replay import Life, make
from worldmodel import cli
from worldmodel.errors import CheckpointError
from worldmodel.replay import segments
from worldmodel.train.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "STEPS_PER_SEGMENT", 14)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit": flip,
    "missing": Path.unlink,
    "half a record": lambda path: path.write_bytes(path.read_bytes()[:-5]),
}


def without(past: list[dict[str, Any]], gaps: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """What one environment lived, as it should be held with these steps lost: moved towards the newest step."""
    kept: list[dict[str, Any]] = []
    for number, step in enumerate(past):
        if any(first <= number < last for first, last in gaps):
            continue
        if kept and any(number == last for _, last in gaps):
            kept[-1] = {**kept[-1], "is_last": True, "action": np.zeros_like(step["action"])}
            step = {**step, "is_first": True, "reward": np.float32(0)}
        kept.append(step)
    return [{}] * (len(past) - len(kept)) + kept


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("names", "gaps"),
    [
        (["steps-00000001"], [(7, 14)]),
        (["memory-00000000", "steps-00000002"], [(0, 7), (14, 21)]),
        (["steps-00000001", "memory-00000001", "memory-00000002"], [(7, 14), (14, 21)]),
        (["steps-00000004"], [(28, 33)]),
    ],
)
def test_the_rest_is_sampled_evenly_and_is_what_was_lived(
    names: list[str], gaps: list[tuple[int, int]], damage: str, sampler: str, tmp_path: Path
) -> None:
    replay = make(2, capacity=80, sampler=sampler, online_fraction=0.0, batch_size=64)
    life = Life(replay, 0)
    life.live(33)  # segments of 7 steps per environment, the last one of 5
    replay.save(tmp_path / "a")
    for name in names:
        DAMAGES[damage](tmp_path / "a" / f"{name}.safetensors")
    life.replay = loaded = make(2, capacity=80, sampler=sampler, online_fraction=0.0, batch_size=64)
    with pytest.raises(CheckpointError):
        loaded.load(tmp_path / "a")
    lost = sum(last - first for first, last in gaps)
    assert loaded.load(tmp_path / "a", salvage=True) == 2 * lost
    assert len(loaded) == 2 * (33 - lost) and loaded.total_steps == 66 and loaded.window.low == lost
    life.steps = [without(past, gaps) for past in life.steps]
    counts = torch.zeros(2, 34)
    for _ in range(40):
        batch = loaded.sample()
        life.check(batch)
        assert batch.index is not None
        counts.index_put_(tuple(batch.index.T), torch.ones(64), accumulate=True)
    drawn = counts[:, loaded.window.first : loaded.window.last]
    assert drawn.sum() == 40 * 64 and chisquare(drawn.flatten().numpy()).pvalue > 1e-4
    # it lives on, and its next save is whole
    if gaps[-1][1] < 33:
        life.live(9)
        life.check(loaded.sample())
    loaded.save(tmp_path / "b", tmp_path / "a")
    again = make(2, capacity=80, sampler=sampler, online_fraction=0.0, batch_size=64)
    again.load(tmp_path / "b")
    assert again.digest() == loaded.digest()


def test_nothing_left_is_an_empty_buffer(tmp_path: Path) -> None:
    replay = make(2)
    Life(replay, 0).live(9)
    replay.save(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    loaded = make(2)
    assert loaded.load(tmp_path, salvage=True) == 18
    assert len(loaded) == 0 and not loaded.is_ready and loaded.total_steps == 18


def test_one_bad_sector_in_what_all_checkpoints_share_costs_a_segment_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert train(run_dir) == 0
    shared = Checkpoints(run_dir / "checkpoints").candidates()[0] / "replay" / "steps-00000000.safetensors"
    assert shared.stat().st_nlink == 3, "one file in three checkpoints"
    flip(shared)
    capsys.readouterr()
    assert cli.main(["eval", str(run_dir), "--episodes", "1"]) == 0
    assert "no checkpoint is whole" in capsys.readouterr().err
    assert resume(run_dir, "--train.steps", str(2 * STEPS)) == 0
    out = capsys.readouterr().out
    assert "steps-00000000.safetensors is damaged" in out and "no checkpoint is whole" in out
    assert "14 damaged steps of replay are left out" in out
    assert newest(run_dir).step == 2 * STEPS
    steps = [json.loads(line)["step"] for line in (run_dir / "scores.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
