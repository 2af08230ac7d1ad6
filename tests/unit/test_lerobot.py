"""LeRobot's folders, laid out by hand as their documentation says: alignment, ends, several files, and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit import data_files as files
from worldmodel.data.episodes import ReadOptions
from worldmodel.data.formats import open_dataset
from worldmodel.data.formats.lerobot import FORMAT
from worldmodel.errors import DataError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [3]}, "action": {"dtype": "float32", "shape": [2]},
    "observation.images.top": {"dtype": "video", "shape": [96, 96, 3]},
    "next.reward": {"dtype": "float32", "shape": [1]}, "next.done": {"dtype": "bool", "shape": [1]},
    "next.success": {"dtype": "bool", "shape": [1]}, "episode_index": {"dtype": "int64", "shape": [1]},
    "frame_index": {"dtype": "int64", "shape": [1]},
}


def rows_of(index: int, played: files.Played) -> list[dict[str, Any]]:
    """A row for each state that was acted in, and where the task did not end, one for the last state too, in which an
    action was taken that led nobody knows where."""
    count = len(played) + (not played.terminated)
    action = np.concatenate([played.action, np.full((1, 2), 0.5, np.float32)])
    reward = np.append(played.reward, np.float32(99))
    return [
        {
            "observation.state": played.x[t].tolist(), "action": action[t].tolist(), "next.reward": float(reward[t]),
            "next.done": t == count - 1, "next.success": bool(played.terminated and t == count - 1),
            "episode_index": index, "frame_index": t, "timestamp": t / 10, "index": t, "task_index": 0,
        }
        for t in range(count)
    ]


def lay_out(
    path: Path, played: list[files.Played], split: tuple[int, ...] = (),
    change: Callable[[list[dict[str, Any]]], Any] = lambda rows: None, **features: Any,
) -> Path:
    """In one file, or in several that begin at these rows."""
    (path / "meta").mkdir(parents=True)
    info = {"codebase_version": "v3.0", "fps": 10, "features": {k: v for k, v in (FEATURES | features).items() if v}}
    (path / "meta" / "info.json").write_text(json.dumps(info))
    rows = [row for index, each in enumerate(played) for row in rows_of(index, each)]
    change(rows)
    for number, (begin, end) in enumerate(zip((0, *split), (*split, len(rows)))):
        file = path / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows[begin:end]), file)
    return path


@pytest.mark.parametrize("split", [(), (5, 8), (2, 7)])
def test_transitions_are_read_right_from_one_file_or_several(
    tmp_path: Path, split: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldmodel.data.formats.lerobot.ROWS", 3)
    played = files.play()
    dataset = open_dataset(lay_out(tmp_path / "a", played, split))
    for _ in range(2):
        episodes = list(dataset)
        assert [len(episode) for episode in episodes] == [4, 3, 5]
        for episode, each in zip(episodes, played):
            # the last observation of what ended is not in the file
            known = slice(None, -1) if each.terminated else slice(None)
            np.testing.assert_array_equal(episode.obs["vector"][known], each.x[known])
            np.testing.assert_array_equal(episode.action, each.action)
            np.testing.assert_array_equal(episode.reward, each.reward)
            assert (episode.terminated, episode.truncated, episode.invented) == (
                each.terminated, not each.terminated, each.terminated
            )
    ended = list(dataset)[1].obs["vector"]
    np.testing.assert_array_equal(ended[-1], ended[-2])


def test_several_senses_keep_their_names_and_without_rewards_there_are_none(tmp_path: Path) -> None:
    def feel(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["observation.force"] = [row["observation.state"][0] * 2]
            del row["next.reward"], row["next.success"]

    force = {"observation.force": {"dtype": "float64", "shape": [1]}}
    path = lay_out(tmp_path / "a", files.play(), change=feel, **force, **{"next.reward": None, "next.success": None})
    dataset = FORMAT.read(path, ReadOptions(low=(-3.0,), high=(3.0,)))
    assert set(dataset.header.obs) == {"state", "force"} and dataset.header.action.low == (-3.0, -3.0)
    episodes = list(dataset)
    # what nobody calls a success was cut, and its last row is where
    assert [len(episode) for episode in episodes] == [4, 2, 5] and not any(e.terminated for e in episodes)
    for episode in episodes:
        assert not episode.reward.any()
        np.testing.assert_allclose(episode.obs["force"][:, 0], 2 * episode.obs["state"][:, 0])


def missing(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        del row["action"]


@pytest.mark.parametrize(("change", "features", "said"), [
    (lambda rows: rows.pop(6), {}, r"episode 1: its 'frame_index' does not count from 0"),
    (missing, {}, r"file-000.parquet cannot be read \(no column 'action' in it\)"),
    (lambda rows: rows[6].update(action=[float("nan"), 0.0]), {}, r"episode 1: action is not finite at step 1"),
    (lambda rows: None, {"action": None}, r"info.json: features have no 'action'"),
    (lambda rows: None, {"observation.state": None}, r"no observation of numbers; videos are not read"),
    (lambda rows: None, {"observation.state": {"dtype": "float32", "shape": [4]}}, r"has 3 numbers, info.json says"),
])
def test_what_is_broken_is_a_sentence_with_its_place(
    tmp_path: Path, change: Any, features: dict[str, Any], said: str
) -> None:
    path = lay_out(tmp_path / "a", files.play(), change=change, **features)
    with pytest.raises(DataError, match=said):
        list(open_dataset(path))


def test_a_folder_that_is_not_whole_is_a_sentence(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "a", files.play())
    file = next(path.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"file-000.parquet cannot be read"):
        list(open_dataset(path))
    file.unlink()
    with pytest.raises(DataError, match=r"has no parquet files; the folder is not whole"):
        open_dataset(path)
    (path / "meta" / "info.json").write_text("{")
    with pytest.raises(DataError, match=r"info.json cannot be read"):
        open_dataset(path)
