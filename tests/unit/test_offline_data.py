"""Learning from data: every transition is there once, nothing is lived, and a run goes on bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit import data_files as files
from worldmodel import cli, presets, runs, tree
from worldmodel.config import Run
from worldmodel.data.episodes import Actions, Dataset, Episode, Header
from worldmodel.data.formats import open_dataset
from worldmodel.errors import CheckpointError, DataError, UserError
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.mixed import MixedReplay, split
from worldmodel.replay.offline import Fit, fill_replay
from worldmodel.replay.ring import RingReplay
from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.config import TrainConfig
from worldmodel.train.hold import hold_all
from worldmodel.types import Step, Update

CPU = torch.device("cpu")
SPEC = EnvSpec(
    name="toy", obs={"state": ArraySpec(shape=(3,), dtype="float32")}, action=ActionSpec(kind="continuous", size=2)
)
SMALL = ReplayConfig(batch_size=4, length=3, capacity=100)
MEMORY = {"latent": ArraySpec(shape=(2,), dtype="float32")}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def played() -> list[files.Played]:
    return files.play((4, 1, 3, 6), (False, True, True, False))


def filled(path: Path, config: ReplayConfig = SMALL, **more: Any) -> RingReplay:
    return fill_replay(open_dataset(path), config, SPEC, MEMORY, device=CPU, seed=0, **more)


# A dataset as a replay


def test_replay_holds_every_step_of_the_data_once_and_in_order(tmp_path: Path, played: list[files.Played]) -> None:
    replay = filled(files.d4rl(tmp_path / "a.hdf5", played))
    batch = replay.read(0, replay.total_steps)
    # a step that belongs to no episode goes before
    assert bool(batch.is_first[0, 0]) and bool(batch.is_last[0, 0]) and not bool(batch.is_terminal[0, 0])
    at = 1
    for each in played:
        here = slice(at, at + len(each) + 1)
        np.testing.assert_array_equal(batch.obs["state"][0, here], each.x)
        np.testing.assert_array_equal(batch.action[0, here][:-1], each.action)
        np.testing.assert_array_equal(batch.prev_action[0, here][1:], each.action)
        np.testing.assert_array_equal(batch.reward[0, here], [0, *each.reward])
        assert batch.action[0, here][-1].tolist() == [0, 0] == batch.prev_action[0, here][0].tolist()
        assert batch.is_first[0, here].tolist() == [True] + [False] * len(each)
        assert batch.is_last[0, here].tolist() == [False] * len(each) + [True]
        assert batch.is_terminal[0, here].tolist() == [False] * len(each) + [each.terminated]
        at += len(each) + 1
    assert at == replay.total_steps == len(replay)


def test_every_start_is_drawn_the_first_step_of_the_data_too(tmp_path: Path, played: list[files.Played]) -> None:
    replay = filled(files.d4rl(tmp_path / "a.hdf5", played))
    seen = {int(start) for _ in range(200) for start in replay.sample().index[:, 1]}  # type: ignore[index]
    assert seen == set(range(1, replay.total_steps - SMALL.length + 1))


def test_steps_at_once_are_steps_one_by_one(tmp_path: Path, played: list[files.Played]) -> None:
    batch = filled(files.d4rl(tmp_path / "a.hdf5", played)).read(0, 19)
    config = replace(SMALL, online_fraction=1.0, sampler="prioritized")
    whole, single = (RingReplay(config, SPEC, MEMORY, 1, home=CPU, device=CPU, seed=0) for _ in range(2))
    for first, last in ((0, 2), (2, 3), (3, 19)):
        whole.extend(tree.index(replace(batch, index=None), (slice(None), slice(first, last))))
    for t in range(19):
        step = Step(
            obs={"state": batch.obs["state"][:, t]}, reward=batch.reward[:, t], is_first=batch.is_first[:, t],
            is_last=batch.is_last[:, t], is_terminal=batch.is_terminal[:, t],
        )
        single.add(step, batch.action[:, t], {})
    assert single.digest() == whole.digest() and single.stats()["fresh"] > 3
    with pytest.raises(ValueError, match="at most 100"):
        whole.extend(tree.index(replace(batch, index=None), (slice(None), torch.zeros(101, dtype=torch.int64))))


def test_data_on_disk_is_data_in_memory(tmp_path: Path, played: list[files.Played]) -> None:
    path = files.d4rl(tmp_path / "a.hdf5", played)
    near, far = filled(path), filled(path, replace(SMALL, device="disk"), scratch=tmp_path / "s")
    assert far.digest() == near.digest()
    for _ in range(5):
        one, other = near.sample(), far.sample()
        assert torch.equal(one.reward, other.reward) and torch.equal(one.obs["state"], other.obs["state"])
        fresh = Update(metrics={}, memory={"latent": torch.rand(4, 3, 2)})
        near.write_back(one, fresh)
        far.write_back(other, fresh)
    assert far.digest() == near.digest()
    assert list((tmp_path / "s").iterdir()) == []  # the files have no names


def test_data_that_exceeds_the_budget_of_memory_goes_to_disk(
    tmp_path: Path, played: list[files.Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldmodel.replay.storage.free_memory", lambda device: 1000)
    path = files.d4rl(tmp_path / "a.hdf5", played)
    assert filled(path, scratch=tmp_path).config.device == "disk"
    with pytest.raises(UserError, match="memory_budget"):
        filled(path, replace(SMALL, device="host"))


def dataset(action: Actions, obs: dict[str, np.ndarray], taken: np.ndarray) -> Dataset:
    specs = {key: ArraySpec(shape=x.shape[1:], dtype=str(x.dtype)) for key, x in obs.items()}
    reward = np.zeros(len(taken))
    episode = Episode(obs=obs, action=taken, reward=reward, terminated=False, truncated=True, source="made, episode 0")
    return Dataset(header=Header(name="made", obs=specs, action=action), read=lambda: iter([episode]))


def test_units_of_the_source_become_ours() -> None:
    obs = {"vector": np.zeros((4, 3))}
    bounded = Actions(kind="continuous", size=2, low=(-2.0, 0.0), high=(2.0, 1.0))
    data = dataset(bounded, obs, np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 0.75]]))
    steps = Fit(data.header, SPEC).steps(next(iter(data)))
    np.testing.assert_allclose(steps.action[0], [[-1, -1], [1, 1], [0, 0.5], [0, 0]])
    assert steps.obs["state"].dtype == torch.float32
    chosen = dataset(Actions(kind="discrete", size=2), obs, np.array([1, 0, 1]))
    spec = replace(SPEC, action=ActionSpec(kind="discrete", size=3))
    steps = Fit(chosen.header, spec).steps(next(iter(chosen)))
    assert steps.action[0].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_data_of_another_environment_is_a_sentence() -> None:
    unit, obs = Actions(kind="continuous", size=2), {"vector": np.zeros((4, 3), np.float32)}
    image = {"image": np.zeros((4, 8, 8, 3), np.uint8)}
    pixels = replace(SPEC, obs={"image": ArraySpec(shape=(9, 9, 3), dtype="uint8")})
    two = replace(SPEC, obs={"a": ArraySpec(shape=(3,), dtype="float32"), "b": ArraySpec(shape=(1,), dtype="float32")})
    taken = np.zeros((3, 2), np.float32)
    for action, given, spec, said in [
        (Actions(kind="discrete", size=2), obs, SPEC, "discrete 2, of toy continuous 2"),
        (Actions(kind="continuous", size=3), obs, SPEC, "continuous 3"), (unit, image, SPEC, r"\(8, 8, 3\)"),
        (unit, image, pixels, r"\(9, 9, 3\)"), (unit, obs, two, "no observation 'a'"),
    ]:
        with pytest.raises(DataError, match=said):
            Fit(dataset(action, given, taken).header, spec)
    wild = dataset(unit, obs, np.full((3, 2), 2.0, np.float32))
    with pytest.raises(DataError, match=r"made, episode 0: action reaches 2 times its bounds.*--low"):
        fill_replay(wild, SMALL, SPEC, {}, device=CPU, seed=0)
    with pytest.raises(DataError, match=r"too few for one sequence; set replay.length to at most 3"):
        fill_replay(dataset(unit, obs, taken), replace(SMALL, length=9), SPEC, {}, device=CPU, seed=0)


# Data beside what is lived


def mixed(path: Path, **changes: Any) -> MixedReplay:
    config = replace(SMALL, data_fraction=0.5, online_fraction=0.0, **changes)
    mine, theirs = split(config)
    lived = RingReplay(theirs, SPEC, MEMORY, 2, home=CPU, device=CPU, seed=1)
    return MixedReplay(fill_replay(open_dataset(path), mine, SPEC, MEMORY, device=CPU, seed=0), lived)


def live(replay: MixedReplay, steps: int) -> None:
    for t in range(steps):
        no = torch.zeros(2, dtype=torch.bool)
        step = Step(
            obs={"state": torch.full((2, 3), 100.0 + t)}, reward=torch.zeros(2), is_first=no | (t == 0), is_last=no,
            is_terminal=no,
        )
        replay.add(step, torch.zeros(2, 2), {"latent": torch.zeros(2, 2)})


def test_a_mixed_batch_has_its_share_of_both_and_each_gets_its_own_back(
    tmp_path: Path, played: list[files.Played]
) -> None:
    replay = mixed(files.d4rl(tmp_path / "a.hdf5", played), min_starts=4)
    assert not replay.is_ready  # what is lived decides when learning begins
    live(replay, 9)
    assert replay.is_ready and replay.total_steps == len(replay) == 18
    batch = replay.sample()
    assert (batch.obs["state"][:, :, 0] >= 100).all(1).tolist() == [False, False, True, True]
    latent = torch.tensor([1.0, 1.0, 2.0, 2.0]).view(4, 1, 1).expand(4, 3, 2)
    replay.write_back(batch, Update(metrics={}, memory={"latent": latent}))
    assert batch.index is not None
    for row, (env, start) in enumerate(batch.index.tolist()):
        part = replay.data if row < 2 else replay.lived
        assert part.storage.grid("memory/latent")[env, start : start + 3].tolist() == [[1.0 + (row >= 2)] * 2] * 3
    with pytest.raises(UserError, match="data_fraction"):
        split(replace(SMALL, data_fraction=0.01))


def test_a_mixed_replay_goes_on_bit_for_bit_and_leaves_the_data_where_it_is(
    tmp_path: Path, played: list[files.Played]
) -> None:
    path = files.d4rl(tmp_path / "a.hdf5", played)
    one, other = mixed(path, sampler="prioritized"), mixed(path, sampler="prioritized")
    live(one, 12)
    batch = one.sample()
    fresh = Update(metrics={}, memory={"latent": torch.rand(4, 3, 2)}, priority=torch.rand(4, 3))
    one.write_back(batch, fresh)
    one.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("data-steps*"))
    assert other.load(tmp_path / "saved") == 0
    assert other.data.digest() == one.data.digest() and other.lived.digest() == one.lived.digest()
    a, b = one.sample(), other.sample()
    assert torch.equal(a.reward, b.reward) and a.weight is not None and torch.equal(a.weight, b.weight)  # type: ignore[arg-type]
    changed = files.play((4, 1, 3, 6), (False, True, True, True))
    third = mixed(files.d4rl(tmp_path / "b.hdf5", changed), sampler="prioritized")
    with pytest.raises(CheckpointError, match="other data"):
        third.load(tmp_path / "saved")


# Runs


def run_of(data: Path | str = "", **changes: Any) -> Run:
    """A model-free agent on Pendulum, small; by ``preset`` another."""
    run = presets.find_preset("dyna").build({"version": "td3bc"})
    agent = replace(
        run.agent, first=50, recent=1000, batch_size=8, policy=replace(run.agent.policy, units=(8,)),
        value=replace(run.agent.value, units=(8,)),
    )
    train = TrainConfig(
        steps=40, num_envs=2, train_ratio=8, eval_every=20, eval_episodes=1, eval_envs=1, pool="serial", threads=1,
        checkpoint_steps=20, log_steps=10, keep_checkpoints=9,
    )
    small = ReplayConfig(capacity=600, batch_size=4, length=4, online_fraction=0.0)
    return replace(run, agent=agent, data=str(data), train=train, replay=small, device="cpu", **changes)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pendulum"
    assert cli.main(["data", "collect", "--env", "Pendulum-v1", "--episodes", "2", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def offline(pendulum: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "offline"
    summary = runs.start(run_of(pendulum), folder, live=False)
    assert (summary.env_steps, summary.updates, summary.reason) == (40, 40, "steps")
    return folder


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: x for key, x in row.items() if not key.startswith(("time/", "fps/"))} for row in found]


def newest(folder: Path) -> Any:
    return Checkpoints(folder / "checkpoints").latest(on_skip=pytest.fail)


def test_an_agent_that_holds_gets_every_transition_once_in_order(tmp_path: Path, played: list[files.Played]) -> None:
    config = replace(run_of().agent, first=10)
    agent = config.build(SPEC)
    hold_all(agent, filled(files.d4rl(tmp_path / "a.hdf5", played)))
    held = agent.seen.at(slice(0, len(agent.seen)))
    assert agent.seen.total == sum(map(len, played))
    np.testing.assert_array_equal(held.x, np.concatenate([each.x[:-1] for each in played]))
    np.testing.assert_array_equal(held.next_x, np.concatenate([each.x[1:] for each in played]))
    np.testing.assert_array_equal(held.action, np.concatenate([each.action for each in played]))
    np.testing.assert_array_equal(held.reward, np.concatenate([each.reward for each in played]))
    assert held.terminal.sum() == 2 and held.edge.sum() == 2
    with pytest.raises(UserError, match=r"14 transitions.*--agent.recent 14"):
        hold_all(replace(config, recent=10, first=5).build(SPEC), filled(tmp_path / "a.hdf5"))
    with pytest.raises(UserError, match=r"14 transitions.*fewer than 50.*--agent.first 14"):
        hold_all(replace(config, first=50).build(SPEC), filled(tmp_path / "a.hdf5"))


def test_long_data_is_held_across_the_borders_of_chunks(
    tmp_path: Path, played: list[files.Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldmodel.train.hold.CHUNK", 3)
    agent = run_of().agent.build(SPEC)
    hold_all(agent, filled(files.d4rl(tmp_path / "a.hdf5", played)), more=True)
    np.testing.assert_array_equal(
        agent.seen.at(slice(0, len(agent.seen))).reward, np.concatenate([each.reward for each in played])
    )


def test_offline_nothing_is_lived_and_updates_count(offline: Path) -> None:
    assert {row["kind"] for row in rows(offline, "scores.jsonl")} == {"eval_mode", "eval_sampled"}
    assert {row["step"] for row in rows(offline)} == {10, 20, 30, 40}
    last = newest(offline)
    assert last.step == 40 and last.meta["updates"] == 40
    state = last.document("trainer")
    assert state["ratio"]["updates"] == 40 and not state["envs_cloned"]
    counts = last.tensors("agent_count")
    assert int(counts["updates"]) == 40 and bool(counts["told"])
    assert int(last.tensors("agent_seen")["count"]) == 400  # both episodes, once


def test_an_offline_run_goes_on_bit_for_bit(offline: Path, pendulum: Path, tmp_path: Path) -> None:
    half = run_of(pendulum)
    half = replace(half, train=replace(half.train, steps=20))
    runs.start(half, tmp_path / "half", live=False)
    summary = runs.resume(tmp_path / "half", change=lambda run: replace(run, train=run_of().train), live=False)
    assert summary.updates == 40
    one, other = newest(offline), newest(tmp_path / "half")
    digests = [{n: e.sha256 for n, e in x.files.items() if n != "trainer.json"} for x in (one, other)]
    assert digests[0] == digests[1]
    assert rows(offline, "scores.jsonl") == rows(tmp_path / "half", "scores.jsonl")


def test_a_resume_wants_the_same_data_wherever_it_lies(pendulum: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pendulum, data)
    runs.start(run_of(data), tmp_path / "r", live=False)
    data.rename(tmp_path / "moved")

    def more(run: Run, where: Path) -> Run:
        return replace(run, data=str(where), train=replace(run.train, steps=50))

    with pytest.raises(DataError, match="there is no dataset"):
        runs.resume(tmp_path / "r", change=lambda run: more(run, data), live=False)
    assert cli.main(["data", "collect", "--env", "Pendulum-v1", "--episodes", "2", "--seed", "9", str(data)]) == 0
    with pytest.raises(CheckpointError, match="other data"):
        runs.resume(tmp_path / "r", change=lambda run: more(run, data), live=False)
    assert runs.resume(tmp_path / "r", change=lambda run: more(run, tmp_path / "moved"), live=False).updates == 50


def test_online_every_new_transition_is_held_once(tmp_path: Path) -> None:
    run = run_of()
    quick = replace(run.train, steps=450, eval_every=0, log_steps=0, checkpoint_steps=0, train_ratio=1)
    run = replace(run, train=quick)
    runs.start(run, tmp_path / "r", live=False)
    loaded = runs.load(tmp_path / "r", device="cpu")
    agent: Any = loaded.agent
    # 225 steps of each of two environments, of which two begin an episode
    assert agent.seen.total == 2 * (225 - 2) == len(agent.seen)
    held = agent.seen.at(slice(0, len(agent.seen)))
    assert len(torch.unique(held.x, dim=0)) == len(held.x) and int(held.edge.sum()) == 2


def test_dreamer_learns_from_pixels_of_a_dataset_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    words = ["--env", "quickstart --task catch", "--episodes", "4", "--format", "dreamer"]
    assert cli.main(["data", "collect", *words, str(tmp_path / "catch")]) == 0
    common = [
        "quickstart", "--data", str(tmp_path / "catch"), "--train.eval-episodes", "1", "--train.eval-envs", "1",
        "--train.checkpoint-steps", "2", "--train.eval-every", "0", "--replay.batch-size", "2", "--replay.length", "5",
        "--agent.imagination", "2", "--train.threads", "1", "--device", "cpu", "--train.log-steps", "1",
    ]  # fmt: skip
    assert cli.main(["train", *common, "--train.steps", "4", "--run-dir", str(tmp_path / "whole")]) == 0
    assert cli.main(["train", *common, "--train.steps", "2", "--run-dir", str(tmp_path / "half")]) == 0
    assert cli.main(["resume", str(tmp_path / "half"), "--train.steps", "4"]) == 0
    one, other = (newest(tmp_path / name) for name in ("whole", "half"))
    digests = [{n: e.sha256 for n, e in x.files.items() if n != "trainer.json"} for x in (one, other)]
    assert digests[0] == digests[1] and not any("data-steps" in name for name in digests[0])
    assert all(row["loss/total"] > 0 for row in rows(tmp_path / "whole") if "loss/total" in row)


def test_a_planning_agent_learns_from_data_too(tmp_path: Path) -> None:
    words = ["--env", "tdmpc2 --task catch", "--episodes", "2", "--format", "dreamer"]
    assert cli.main(["data", "collect", *words, str(tmp_path / "catch")]) == 0
    run = presets.find_preset("tdmpc2").build({"task": "catch", "size": "nano"})
    train = TrainConfig(steps=2, eval_every=0, eval_episodes=1, eval_envs=1, threads=1, pool="serial")
    small = replace(run.replay, batch_size=2, length=4)
    run = replace(run, data=str(tmp_path / "catch"), replay=small, train=train, device="cpu")
    assert runs.start(run, tmp_path / "r", live=False).updates == 2
    assert all(torch.isfinite(x).all() for x in newest(tmp_path / "r").tensors("agent_model").values())


# Offline to online


def test_an_offline_agent_goes_on_online_without_the_data(offline: Path, tmp_path: Path) -> None:
    run = run_of(init=str(offline))
    run = replace(run, train=replace(run.train, steps=120, eval_every=0))
    summary = runs.start(run, tmp_path / "online", live=False)
    assert summary.env_steps == 120
    before, after = newest(offline), newest(tmp_path / "online")
    counts = after.tensors("agent_count")
    # counted on from 40; while fewer than 50 transitions are held (WSRL's warm-up) it acts as it was and learns nothing
    assert 40 < int(counts["updates"]) < 40 + summary.updates
    assert int(after.tensors("agent_seen")["count"]) == 2 * (60 - 1)  # nothing of the data
    shifts = {n: x for n, x in before.tensors("agent_model").items() if n.endswith((".shift", ".scale"))}
    assert shifts
    for name, x in shifts.items():
        assert torch.equal(x, after.tensors("agent_model")[name]), name
    assert all(torch.isfinite(x).all() for x in after.tensors("agent_model").values())


def test_at_the_switch_the_agent_acts_as_it_did(offline: Path, tmp_path: Path) -> None:
    run = run_of(init=str(offline))
    run = replace(run, train=replace(run.train, steps=2, eval_every=0))
    runs.start(run, tmp_path / "online", live=False)
    assert rows(offline, "scores.jsonl")[-2]["returns"] == rows(tmp_path / "online", "scores.jsonl")[-2]["returns"]


def test_an_offline_agent_goes_on_online_with_the_data_beside(offline: Path, pendulum: Path, tmp_path: Path) -> None:
    run = run_of(pendulum, init=str(offline))
    run = replace(run, replay=replace(run.replay, data_fraction=0.5), train=replace(run.train, steps=40, eval_every=0))
    assert runs.start(run, tmp_path / "online", live=False).env_steps == 40
    assert int(newest(tmp_path / "online").tensors("agent_seen")["count"]) == 400 + 2 * (20 - 1)
    again = replace(run.train, steps=60)
    assert runs.resume(tmp_path / "online", change=lambda r: replace(r, train=again), live=False).env_steps == 60


def test_an_agent_of_other_sizes_is_a_sentence(offline: Path, tmp_path: Path) -> None:
    run = run_of(init=str(offline))
    run = replace(run, agent=replace(run.agent, policy=replace(run.agent.policy, units=(16,))))
    with pytest.raises(CheckpointError, match="of another agent"):
        runs.start(run, tmp_path / "online", live=False)
    assert not (tmp_path / "online" / "config.json").exists()


def test_settings_that_contradict_each_other_are_refused(pendulum: Path) -> None:
    with pytest.raises(ValueError, match="data_fraction is 0"):
        replace(run_of(pendulum), replay=replace(SMALL, data_fraction=0.0))
    with pytest.raises(ValueError, match="min_updates"):
        run = run_of(pendulum)
        replace(run, train=replace(run.train, min_updates=3))
