"""An environment whose reward tells state, action and next state, and its episodes in every layout, written by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data.episodes import Episode


@dataclass(frozen=True, kw_only=True)
class Played:
    """What happened, without any convention of a file."""

    x: np.ndarray
    """(T + 1, 3)."""
    action: np.ndarray
    """(T, 2) in [-1, 1]."""
    reward: np.ndarray
    """(T,)."""
    terminated: bool

    def __len__(self) -> int:
        return len(self.reward)


def reward_of(x: np.ndarray, action: np.ndarray, next_x: np.ndarray) -> np.ndarray:
    """(T,) different for every (x, a, x'), so that a shift of anything against anything shows."""
    return x @ [1.0, 2.0, 3.0] + action @ [10.0, 20.0] + next_x @ [100.0, 200.0, 300.0]


def play(lengths: tuple[int, ...] = (4, 3, 5), ends: tuple[bool, ...] = (False, True, False)) -> list[Played]:
    rng = np.random.default_rng(7)
    out = []
    for steps, terminated in zip(lengths, ends):
        x = rng.normal(size=(steps + 1, 3)).astype(np.float32)
        action = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        reward = reward_of(x[:-1], action, x[1:]).astype(np.float32)
        out.append(Played(x=x, action=action, reward=reward, terminated=terminated))
    return out


def assert_right(episodes: list[Episode], played: list[Played], key: str = "vector", *, scale: float = 1.0) -> None:
    """Every transition of every episode, in order; actions of the file are ``scale`` times those played."""
    assert [len(episode) for episode in episodes] == [len(each) for each in played]
    for episode, each in zip(episodes, played):
        np.testing.assert_array_equal(episode.obs[key], each.x)
        np.testing.assert_allclose(episode.action, scale * each.action, rtol=1e-6)
        np.testing.assert_allclose(episode.reward, each.reward, rtol=1e-6)
        told = reward_of(episode.obs[key][:-1], episode.action / scale, episode.obs[key][1:])
        np.testing.assert_allclose(episode.reward, told, rtol=1e-4, atol=1e-3)
        assert episode.terminated == each.terminated and episode.truncated != each.terminated


def d4rl(path: Path, played: list[Played], *, with_next: bool = True, **without: bool) -> Path:
    """Flat arrays; rows of ``timeouts`` are rows of the data. ``timeouts=False`` leaves a key out."""
    last = [np.arange(len(each)) == len(each) - 1 for each in played]
    columns = {
        "observations": np.concatenate([each.x[:-1] for each in played]),
        "actions": np.concatenate([each.action for each in played]),
        "rewards": np.concatenate([each.reward for each in played]),
        "terminals": np.concatenate([at & each.terminated for at, each in zip(last, played)]),
        "timeouts": np.concatenate([at & (not each.terminated) for at, each in zip(last, played)]),
    }
    if with_next:
        columns["next_observations"] = np.concatenate([each.x[1:] for each in played])
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            if without.get(key, True):
                file[key] = value
    return path


def minari(path: Path, played: list[Played], *, space: dict[str, Any] | None = None) -> Path:
    """As version 0.5.4 writes: (T + 1) observations, (T,) the rest."""
    (path / "data").mkdir(parents=True)
    box = {"type": "Box", "dtype": "float32", "shape": [3], "low": [-9.0] * 3, "high": [9.0] * 3}
    act = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2}
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for i, each in enumerate(played):
            group, last = file.create_group(f"episode_{i}"), np.arange(len(each)) == len(each) - 1
            group["observations"], group["actions"], group["rewards"] = each.x, each.action, each.reward.astype(float)
            group["terminations"], group["truncations"] = last & each.terminated, last & (not each.terminated)
    meta = {"total_episodes": len(played), "data_format": "hdf5", "dataset_id": "toy/hand-v0",
            "observation_space": json.dumps(space or box), "action_space": json.dumps(act)}
    (path / "data" / "metadata.json").write_text(json.dumps(meta))
    return path


def arrival(folder: Path, played: list[Played]) -> Path:
    """V-D4RL and dreamerv3-torch: a file an episode, action and reward beside the observation they led to."""
    folder.mkdir()
    for i, each in enumerate(played):
        rows = len(each) + 1
        at = np.arange(rows)
        np.savez_compressed(
            folder / f"20220101T00000{i}-abc{i}-{rows}.npz", vector=each.x,
            action=np.concatenate([np.zeros((1, 2), np.float32), each.action]),
            reward=np.concatenate([[0], each.reward]).astype(np.float32),
            discount=np.where((at == rows - 1) & each.terminated, 0, 1).astype(np.float32),
            is_first=at == 0, is_last=at == rows - 1, is_terminal=(at == rows - 1) & each.terminated,
        )
    return folder


def departure(folder: Path, played: list[Played], size: int = 4) -> Path:
    """dreamerv3's chunks: the action chosen at a row lies in it, zeros at is_last; episodes run across files."""
    folder.mkdir()
    rows: dict[str, np.ndarray] = {
        "vector": np.concatenate([each.x for each in played]),
        "action": np.concatenate([np.concatenate([each.action, np.zeros((1, 2), np.float32)]) for each in played]),
        "reward": np.concatenate([np.concatenate([[0], each.reward]) for each in played]).astype(np.float32),
        "is_first": np.concatenate([np.arange(len(each) + 1) == 0 for each in played]),
        "is_last": np.concatenate([np.arange(len(each) + 1) == len(each) for each in played]),
    }
    ends = np.concatenate([np.full(len(each) + 1, each.terminated) for each in played])
    rows["is_terminal"] = rows["is_last"] & ends
    rows["stepid"] = np.zeros((len(ends), 20), np.uint8)
    rows["dyn/deter"] = np.zeros((len(ends), 8), np.float32)
    count = -(-len(ends) // size)
    for i in range(count):
        piece = {key: value[i * size : (i + 1) * size] for key, value in rows.items()}
        after = f"id{i + 1}" if i + 1 < count else "0"
        # times that do not tell the order: the successors do
        name = f"{900 - i}-id{i}-{after}-{len(piece['reward'])}.npz"
        np.savez_compressed(folder / name, **piece)  # type: ignore[arg-type]
    return folder


def vd4rl(path: Path, played: list[Played]) -> Path:
    """Pixels first, and arrival: the first pixels of an image hold x, as bytes of its float32."""
    kinds = [[0] + [1] * (len(each) - 1) + [2] for each in played]
    with h5py.File(path, "w") as file:
        file["observation"] = np.concatenate([images(each) for each in played])
        file["action"] = np.concatenate([np.concatenate([np.zeros((1, 2)), each.action]) for each in played])
        file["reward"] = np.concatenate([np.concatenate([[0], each.reward]) for each in played])
        file["discount"] = np.concatenate(
            [[1.0] * len(each) + [0.0 if each.terminated else 1.0] for each in played]
        )
        file["step_type"] = np.concatenate(kinds)
    return path


def images(each: Played) -> np.ndarray:
    """(T + 1, 3, 8, 8) uint8: 12 bytes of an observation in the first channel."""
    out = np.zeros((len(each.x), 3, 8, 8), np.uint8)
    out[:, 0].reshape(len(each.x), 64)[:, :12] = each.x.view(np.uint8).reshape(len(each.x), 12)
    return out


def neorl(path: Path, played: list[Played]) -> Path:
    last = [np.arange(len(each)) == len(each) - 1 for each in played]
    np.savez_compressed(
        path, obs=np.concatenate([each.x[:-1] for each in played]),
        next_obs=np.concatenate([each.x[1:] for each in played]),
        action=np.concatenate([each.action for each in played]),
        reward=np.concatenate([each.reward for each in played])[:, None],
        done=np.concatenate([at & each.terminated for at, each in zip(last, played)])[:, None],
        index=np.cumsum([0, *(len(each) for each in played[:-1])]),
    )
    return path
