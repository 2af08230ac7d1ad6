"""Datasets of one's own: what is written is what the environment did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.tiny import tiny_run, train
from worldmodel import cli, runs
from worldmodel.data.episodes import Episode
from worldmodel.data.formats import open_dataset
from worldmodel.replay.ring import make_replay


def pendulum_reward(episode: Episode) -> np.ndarray:
    """Gymnasium's, from the state left and the torque: what the file must agree with."""
    x = episode.obs["vector"][:-1].astype(np.float64)
    angle = np.arctan2(x[:, 1], x[:, 0])
    return -(angle**2 + 0.1 * x[:, 2] ** 2 + 0.001 * episode.action[:, 0].astype(np.float64) ** 2)


def test_random_episodes_agree_with_the_environment_and_keep_its_units(tmp_path: Path) -> None:
    words = ["--env", "Pendulum-v1", "--episodes", "3", "--seed", "5"]
    assert cli.main(["data", "collect", *words, str(tmp_path / "a")]) == 0
    data = open_dataset(tmp_path / "a")
    episodes = list(data)
    assert data.header.env == "Pendulum-v1" and data.header.action.low == (-2.0,)
    assert [(len(e), e.terminated, e.truncated) for e in episodes] == [(200, False, True)] * 3
    for episode in episodes:
        assert 1.5 < np.abs(episode.action).max() <= 2.0
        np.testing.assert_allclose(episode.reward, pendulum_reward(episode), rtol=1e-3, atol=1e-3)
    assert cli.main(["data", "collect", *words, str(tmp_path / "b"), "--format", "d4rl"]) == 0
    again = list(open_dataset(tmp_path / "b"))
    assert sorted(e.obs["vector"].tobytes() for e in again) == sorted(e.obs["vector"].tobytes() for e in episodes)


def test_a_scripted_policy_of_ones_own_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_script.py").write_text(
        "import numpy as np\n\n\ndef push(obs, rng):\n    return np.sign(obs['vector'][2:3])\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--env", "Pendulum-v1", "--policy", "./my_script.py:push", "--episodes", "1"]
    assert cli.main(["data", "collect", *words, "a"]) == 0
    (episode,) = open_dataset("a")
    np.testing.assert_array_equal(episode.action[:, 0], 2 * np.sign(episode.obs["vector"][:-1, 2]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run") / "r", tiny_run(task="catch"))


def test_a_trained_agent_plays_whole_episodes(run: Path, tmp_path: Path) -> None:
    words = ["--run", str(run), "--episodes", "3", "--device", "cpu"]
    assert cli.main(["data", "collect", *words, str(tmp_path / "a")]) == 0
    data = open_dataset(tmp_path / "a")
    assert [(len(e), e.terminated) for e in data] == [(55, True)] * 3
    assert data.header.action.kind == "discrete" and data.header.obs["image"].shape == (32, 32, 3)


def test_the_replay_of_a_run_comes_out_as_it_was_lived(run: Path, tmp_path: Path) -> None:
    assert cli.main(["data", "collect", "--replay", str(run), str(tmp_path / "a"), "--format", "dreamer"]) == 0
    episodes = list(open_dataset(tmp_path / "a"))
    loaded = runs.load(run, device="cpu")
    device = torch.device("cpu")
    replay = make_replay(loaded.run.replay, loaded.spec, loaded.agent.memory_spec, 2, device=device, seed=0)
    replay.load(loaded.checkpoint.folder("replay"))
    held = replay.read(0, 8)
    # 8 steps of each of two environments: two unfinished episodes of 7 transitions
    assert [(len(e), e.terminated, e.truncated) for e in episodes] == [(7, False, True)] * 2
    for i, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.obs["image"], held.obs["image"][i])
        np.testing.assert_array_equal(episode.action, held.action[i, :-1].argmax(-1))
        np.testing.assert_array_equal(episode.reward, held.reward[i, 1:])
