"""A saved replay goes on bit for bit, in another process too, and shares what it can with the save before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_replay import CONTINUOUS, DISCRETE, MEMORY, Life, fresh_memory, make
from worldmodel.errors import CheckpointError
from worldmodel.replay import segments as segments_module
from worldmodel.replay.ring import RingReplay
from worldmodel.types import ArraySpec, Batch, Update

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "STEPS_PER_SEGMENT", 14)


def learn(replay: RingReplay, fill: int) -> Batch:
    """One update: draw, write memory and priorities back."""
    batch = replay.sample()
    generator = torch.Generator().manual_seed(fill)
    priority = torch.rand(batch.reward.shape, generator=generator) * 9
    replay.write_back(batch, Update(metrics={}, memory=fresh_memory(batch, fill), priority=priority))
    return batch


def equal(one: Batch, other: Batch) -> bool:
    def flat(batch: Batch) -> dict[str, Any]:
        parts = dict(vars(batch))
        return {k: v for k, v in parts.items() if torch.is_tensor(v)} | parts["obs"] | parts["context"]

    a, b = flat(one), flat(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


OPERATION = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 9)), st.tuples(st.just("learn"), st.integers(0, 200)), st.just(("save", 0))
)


@settings(max_examples=25, deadline=None)
@given(
    operations=st.lists(OPERATION, min_size=3, max_size=14),
    num_envs=st.integers(1, 3),
    slots=st.integers(5, 30),
    discrete=st.booleans(),
    sampler=st.sampled_from(["uniform", "prioritized"]),
    seed=st.integers(0, 99),
)
def test_a_loaded_replay_goes_on_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, int]],
    num_envs: int,
    slots: int,
    discrete: bool,
    sampler: str,
    seed: int,
) -> None:
    folder, previous = tmp_path_factory.mktemp("replay"), None

    def build() -> RingReplay:
        action = DISCRETE if discrete else CONTINUOUS
        return make(num_envs, action, capacity=slots * num_envs, sampler=sampler, online_fraction=0.5, seed=seed)

    replay = build()
    life = Life(replay, seed, abandon=0.1)
    for k, (verb, number) in enumerate([*operations, ("save", 0)]):
        if verb == "add":
            life.live(number)
        elif verb == "learn" and replay.window.starts:
            learn(replay, number)
        elif verb == "save":
            before = replay.digest()
            replay.save(folder / str(k), previous)
            assert replay.digest() == before
            loaded = build()
            loaded.load(folder / str(k))
            assert loaded.digest() == before
            previous = folder / str(k)
            if replay.window.starts:
                assert equal(learn(loaded, 77), learn(replay, 77))
                assert loaded.digest() == replay.digest()
            # Half of the time the loaded one lives on, so that saves after loads are covered as well.
            if k % 2:
                replay = life.replay = loaded
    # The one that was never saved away and one loaded from its last save live the same life from here on.
    twin = build()
    twin.load(folder / str(len(operations)))
    if twin.window.starts:
        learn(twin, 77)
    other = Life(twin, 0, abandon=life.abandon)
    other.steps = [[dict(step) for step in past] for past in life.steps]
    life.rng, other.rng = np.random.default_rng(seed), np.random.default_rng(seed)
    for _ in range(2):
        for each in (life, other):
            each.live(slots // 2 + 2)
        assert equal(learn(life.replay, 5), learn(twin, 5))
    assert life.replay.digest() == twin.digest()


CHILD = """
import sys
from pathlib import Path
from tests.unit.test_replay import make
from tests.unit.test_replay_save import learn
replay = make(2, capacity=40, sampler=sys.argv[2], seed=123)
replay.load(Path(sys.argv[1]))
drawn = [learn(replay, k).index.tolist() for k in range(5)]
print(drawn, replay.digest())
"""


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
def test_another_process_goes_on_bit_for_bit(tmp_path: Path, sampler: str) -> None:
    replay = make(2, capacity=40, sampler=sampler)
    life = Life(replay, 5)
    for k in range(9):
        life.live(7)
        learn(replay, k)
    replay.save(tmp_path)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), sampler], cwd=ROOT, capture_output=True, text=True, check=True
    )
    drawn = [learn(replay, k).index.tolist() for k in range(5)]  # type: ignore[union-attr]
    assert child.stdout.strip() == f"{drawn} {replay.digest()}"


def test_full_segments_are_hard_linked_and_the_rest_is_written(tmp_path: Path) -> None:
    replay = make(2, capacity=200)
    life = Life(replay, 0)
    life.live(22)  # segments of 7 steps per environment: 0-6, 7-13, 14-20 are final, 21 is the tail
    replay.save(tmp_path / "a")
    life.live(5)
    learn(replay, 3)
    replay.save(tmp_path / "b", tmp_path / "a")

    def inode(save: str, name: str) -> int:
        return (tmp_path / save / name).stat().st_ino

    for k in range(3):
        assert inode("a", f"steps-{k:08d}.safetensors") == inode("b", f"steps-{k:08d}.safetensors")
        assert inode("a", f"memory-{k:08d}.safetensors") != inode("b", f"memory-{k:08d}.safetensors")
    assert inode("a", "steps-00000003.safetensors") != inode("b", "steps-00000003.safetensors")


def test_a_segment_stays_open_until_an_abandoned_episode_can_no_longer_change_it(tmp_path: Path) -> None:
    replay = make(2, capacity=200)
    life = Life(replay, 0, end=0.0)
    life.live(7)
    replay.save(tmp_path / "a")
    life.abandon = 1.0
    life.live(1)  # marks step 6, the last one of segment 0
    assert replay.storage.grid("is_last")[:, 6].all()
    replay.save(tmp_path / "b", tmp_path / "a")
    loaded = make(2, capacity=200)
    loaded.load(tmp_path / "b")
    assert loaded.digest() == replay.digest()
    assert loaded.storage.grid("is_last")[:, 6].all()


def test_a_save_never_links_what_another_run_wrote(tmp_path: Path) -> None:
    for seed in (0, 1):
        replay = make(2, capacity=200)
        Life(replay, seed).live(22)
        replay.save(tmp_path / f"own{seed}")
    replay.save(tmp_path / "mixed", tmp_path / "own0")  # equal names and sizes, other content
    loaded = make(2, capacity=200)
    loaded.load(tmp_path / "mixed")
    assert loaded.digest() == replay.digest()
    linked = tmp_path / "own0" / "steps-00000000.safetensors"
    assert not linked.samefile(tmp_path / "mixed" / "steps-00000000.safetensors")
    assert linked.stat().st_size == (tmp_path / "mixed" / "steps-00000000.safetensors").stat().st_size


def test_saves_go_on_without_the_previous_one_or_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = make(2, capacity=24)
    life = Life(replay, 0)
    life.live(20)
    replay.save(tmp_path / "a")
    life.live(6)
    final = tmp_path / "a" / "steps-00000001.safetensors"
    content = final.read_bytes()
    final.write_bytes(content[:-5])  # cut short: not shared
    (tmp_path / "a" / "replay.json").write_text((tmp_path / "a" / "replay.json").read_text())
    replay.save(tmp_path / "b", tmp_path / "a")
    final.write_bytes(content)

    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    replay.save(tmp_path / "c", tmp_path / "b")
    replay.save(tmp_path / "d", tmp_path / "gone")
    (tmp_path / "c" / "replay.json").write_text("{")
    replay.save(tmp_path / "e", tmp_path / "c")
    for name in ("b", "d", "e"):
        loaded = make(2, capacity=24)
        loaded.load(tmp_path / name)
        assert loaded.digest() == replay.digest()


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: make(3), "num_envs is 2 there and 3 here"),
        (lambda: make(2, DISCRETE), "action is continuous 2 there and discrete 3 here"),
        (lambda: make(2, memory={}), r"memory/deter is torch\.bfloat16 \[3\] there and absent here"),
        (
            lambda: make(2, memory=MEMORY | {"deter": ArraySpec(shape=(5,), dtype="bfloat16")}),
            r"memory/deter is torch\.bfloat16 \[3\] there and torch\.bfloat16 \[5\] here",
        ),
    ],
)
def test_a_replay_of_another_spec_is_refused(tmp_path: Path, build: Any, told: str) -> None:
    replay = make(2)
    Life(replay, 0).live(9)
    replay.save(tmp_path)
    with pytest.raises(CheckpointError, match=told):
        build().load(tmp_path)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    replay = make(2)
    Life(replay, 0).live(19)
    replay.save(tmp_path)
    good = {path: path.read_bytes() for path in tmp_path.iterdir()}
    names = ["steps-00000001.safetensors", "memory-00000002.safetensors"]
    for name in names:
        flipped = bytearray(good[tmp_path / name])
        flipped[-3] ^= 4
        for damaged in (bytes(flipped), good[tmp_path / name][:50], b""):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
                make(2).load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read"):
            make(2).load(tmp_path)
        (tmp_path / name).write_bytes(good[tmp_path / name])
    described = json.loads(good[tmp_path / "replay.json"])
    for change, told in (
        ({"format": 99}, "has format 99"),
        ({"steps": described["steps"][1:]}, r"lists no \w+ file for step 0"),
        ({"steps": described["steps"][:-1]}, r"lists no steps file for step 14"),
        ({"memory": []}, r"lists no \w+ file for step 0"),
    ):
        (tmp_path / "replay.json").write_text(json.dumps(described | change))
        with pytest.raises(CheckpointError, match=told):
            make(2).load(tmp_path)
    del described["counters"]
    (tmp_path / "replay.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="lacks"):
        make(2).load(tmp_path)
    (tmp_path / "replay.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"replay\.json cannot be read"):
        make(2).load(tmp_path)


@pytest.mark.parametrize("capacity", [20, 60])
def test_the_capacity_may_change(tmp_path: Path, capacity: int) -> None:
    replay = make(2, capacity=40, sampler="prioritized")
    life = Life(replay, 0)
    life.live(47)
    learn(replay, 1)
    replay.save(tmp_path / "a")
    loaded = make(2, capacity=capacity, sampler="prioritized", online_fraction=0)
    loaded.load(tmp_path / "a")
    assert len(loaded) == min(capacity, 40) and loaded.window.total == 47
    life.replay = loaded
    life.live(3)
    assert len(loaded) == {20: 20, 60: 46}[capacity]
    assert (loaded._sampler.per_step["priority"][:-1] != 1).any()
    loaded.save(tmp_path / "b", tmp_path / "a")
    again = make(2, capacity=capacity, sampler="prioritized", online_fraction=0)
    again.load(tmp_path / "b")
    assert again.digest() == loaded.digest()
    for _ in range(20):
        index = again.sample().index
        assert index is not None and index[:, 1].min() > loaded.window.low


def test_the_sampler_and_the_length_may_change(tmp_path: Path) -> None:
    replay = make(2, sampler="uniform")
    life = Life(replay, 0)
    life.live(18)
    replay.save(tmp_path)
    loaded = make(2, sampler="prioritized", length=5)
    loaded.load(tmp_path)
    assert loaded.stats()["fresh"] == 0 < replay.stats()["fresh"]
    life.replay = loaded
    batch = learn(loaded, 1)
    assert batch.weight is not None and batch.reward.shape == (4, 5)
