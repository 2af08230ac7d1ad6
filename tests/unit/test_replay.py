"""The ring against a plain Python list, and each promise of replay on its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.replay import storage as storage_module
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay, make_replay
from worldmodel.replay.samplers import PrioritizedSampler, SumTree, Window
from worldmodel.replay.storage import bytes_per_step, choose_device, latest_of_equal
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec, Step, Update

CPU = torch.device("cpu")
STATM = Path("/proc/self/statm")
CONTINUOUS, DISCRETE = ActionSpec(kind="continuous", size=2), ActionSpec(kind="discrete", size=3)
OBS = {"image": ArraySpec(shape=(4, 4, 3), dtype="uint8"), "vector": ArraySpec(shape=(2,), dtype="float32")}
MEMORY = {
    "deter": ArraySpec(shape=(3,), dtype="bfloat16"),
    "stoch": ArraySpec(shape=(2,), dtype="uint8", classes=32),
}


def make(
    num_envs: int = 2,
    action: ActionSpec = CONTINUOUS,
    memory: dict[str, ArraySpec] | None = None,
    seed: int = 0,
    **config: Any,
) -> RingReplay:
    numbers: dict[str, Any] = {"capacity": 40, "batch_size": 4, "length": 3} | config
    spec = EnvSpec(name="test", obs=OBS, action=action)
    return make_replay(
        ReplayConfig(**numbers), spec, MEMORY if memory is None else memory, num_envs, device=CPU, seed=seed
    )


class Life:
    """Feeds a replay with random steps and remembers all of them in plain lists."""

    def __init__(self, replay: RingReplay, seed: int, end: float = 0.2, abandon: float = 0.0) -> None:
        self.replay, self.end, self.abandon = replay, end, abandon
        self.action = replay._action
        self.rng = np.random.default_rng(seed)
        self.steps: list[list[dict[str, Any]]] = [[] for _ in range(replay.num_envs)]

    def live(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        rng, rows = self.rng, []
        for past in self.steps:
            abandoned = bool(past) and not past[-1]["is_last"] and rng.random() < self.abandon
            first = not past or past[-1]["is_last"] or abandoned
            last = not first and rng.random() < self.end
            action = np.zeros(self.action.size, np.float32)
            if self.action.kind == "discrete":
                action[rng.integers(self.action.size)] = 1
            else:
                action = rng.uniform(-1, 1, self.action.size).astype(np.float32)
            row = {
                "image": rng.integers(0, 256, OBS["image"].shape, dtype=np.uint8),
                "vector": rng.normal(size=2).astype(np.float32),
                "action": action,
                "reward": np.float32(0 if first else rng.normal()),
                "is_first": first,
                "is_last": last,
                "is_terminal": last and rng.random() < 0.5,
                "deter": torch.from_numpy(rng.normal(size=3)).to(torch.bfloat16),
                "stoch": torch.from_numpy(rng.integers(0, 32, 2, dtype=np.uint8)),
            }
            if abandoned:
                past[-1] |= {"is_last": True, "action": np.zeros_like(action)}
            rows.append(row)
        step, action, memory = collate(rows)
        self.replay.add(step, action, memory if self.replay._memory_keys else {})
        for past, row in zip(self.steps, rows):
            past.append(row | ({"action": np.zeros_like(row["action"])} if row["is_last"] else {}))

    def check(self, batch: Batch) -> None:
        """Every number of the batch is what the lists say, and every start was a valid one."""
        assert batch.index is not None
        length, slots = self.replay.config.length, self.replay.storage.slots
        for b, (env, start) in enumerate(batch.index.tolist()):
            past = self.steps[env]
            assert max(0, len(past) - slots) <= start - 1 and start + length <= len(past)
            for key, value in batch.context.items():
                assert torch.equal(value[b], past[start - 1][key])
            for t in range(length):
                told, before = past[start + t], past[start + t - 1]
                for key, value in batch.obs.items():
                    assert torch.equal(value[b, t], torch.from_numpy(told[key]))
                prev_action = np.zeros_like(before["action"]) if told["is_first"] else before["action"]
                assert batch.action[b, t].tolist() == told["action"].tolist()
                assert batch.prev_action[b, t].tolist() == prev_action.tolist()
                assert batch.reward[b, t].item() == told["reward"]
                for flag in ("is_first", "is_last", "is_terminal"):
                    assert getattr(batch, flag)[b, t].item() == told[flag], flag


def collate(rows: list[dict[str, Any]]) -> tuple[Step, Tensor, dict[str, Tensor]]:
    def stacked(key: str) -> Tensor:
        return torch.stack([torch.as_tensor(row[key]) for row in rows])

    step = Step(
        obs={key: stacked(key) for key in OBS},
        reward=stacked("reward"),
        is_first=stacked("is_first"),
        is_last=stacked("is_last"),
        is_terminal=stacked("is_terminal"),
    )
    return step, stacked("action"), {key: stacked(key) for key in MEMORY}


def fresh_memory(batch: Batch, fill: int) -> dict[str, Tensor]:
    lead = batch.reward.shape
    return {
        "deter": torch.full((*lead, 3), fill, dtype=torch.bfloat16),
        "stoch": torch.full((*lead, 2), fill, dtype=torch.uint8),
    }


# What goes in comes out


@settings(max_examples=40, deadline=None)
@given(
    num_envs=st.integers(1, 3),
    slots=st.integers(5, 13),
    length=st.integers(2, 4),
    discrete=st.booleans(),
    sampler=st.sampled_from(["uniform", "prioritized"]),
    online=st.sampled_from([0.0, 0.5, 1.0]),
    adds=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
def test_samples_equal_a_plain_list_of_everything_added(
    num_envs: int, slots: int, length: int, discrete: bool, sampler: str, online: float, adds: list[int], seed: int
) -> None:
    replay = make(
        num_envs,
        DISCRETE if discrete else CONTINUOUS,
        seed=seed,
        capacity=slots * num_envs,
        length=length,
        sampler=sampler,
        online_fraction=online,
    )
    life = Life(replay, seed, abandon=0.1)
    for count in adds:
        life.live(count)
        total = len(life.steps[0])
        assert len(replay) == num_envs * min(total, slots)
        assert replay.total_steps == num_envs * total
        assert replay.window.starts == num_envs * max(0, min(total, slots) - length)
        if replay.window.starts:
            life.check(replay.sample())
            life.check(replay.peek())


def test_every_valid_start_is_drawn_equally_often() -> None:
    replay = make(capacity=20, length=3, batch_size=1000, online_fraction=0)
    Life(replay, 1).live(27)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(14):
        index = replay.sample().index
        assert index is not None
        for row in index.tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    # 10 steps each, 17..26: starts 18..24
    assert sorted(counts) == [(env, start) for env in range(2) for start in range(18, 25)]
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_equal_seeds_draw_equally_and_others_do_not() -> None:
    drawn = []
    for seed in (0, 0, 1):
        replay = make(seed=seed, capacity=200, batch_size=16, online_fraction=0)
        Life(replay, 7).live(90)
        index = replay.sample().index
        assert index is not None
        drawn.append(index.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_peeking_changes_no_later_draw_and_no_digest() -> None:
    replay, twin = make(), make()
    for each in (replay, twin):
        Life(each, 3).live(19)
    before = replay.digest()
    replay.peek()
    assert replay.digest() == before
    first, second = replay.sample().index, twin.sample().index
    assert first is not None and second is not None and torch.equal(first, second)


def test_an_abandoned_episode_is_cut_but_not_terminal() -> None:
    replay = make(1, capacity=10, batch_size=1, length=3)
    life = Life(replay, 0, end=0.0)
    life.live(2)
    life.abandon = 1.0
    life.live(1)
    life.abandon = 0.0
    life.live(1)
    batch = replay.sample()
    assert batch.index is not None and batch.index.tolist() == [[0, 1]]
    assert batch.is_last.tolist() == [[True, False, False]]
    assert batch.is_terminal.tolist() == [[False, False, False]]
    assert batch.is_first.tolist() == [[False, True, False]]
    assert batch.action[0, 0].tolist() == [0.0, 0.0] == batch.prev_action[0, 1].tolist()
    assert batch.action[0, 1].abs().sum() > 0 and batch.prev_action[0, 0].abs().sum() > 0


def test_discrete_actions_come_back_as_one_hots_and_zero_stays_zero() -> None:
    replay = make(1, ActionSpec(kind="discrete", size=300), capacity=10, batch_size=1, length=2)
    life = Life(replay, 0, end=0.0)
    life.live(2)
    rows = [life.steps[0][1]]
    step, _, memory = collate(rows)
    replay.add(step, torch.zeros(1, 300), memory)
    batch = replay.sample()
    assert batch.action[0, 0].tolist() == life.steps[0][1]["action"].tolist()
    assert batch.action[0, 1].tolist() == [0.0] * 300
    assert replay.storage.columns["action"].dtype == torch.int16


def test_steps_added_without_memory_hold_zeros() -> None:
    replay = make(1, capacity=6, batch_size=2, length=2)
    life = Life(replay, 0)
    life.live(9)
    for _ in range(6):
        step, action, _ = collate([life.steps[0][1]])
        replay.add(step, action, {})
    context = replay.sample().context
    assert {key: value.float().abs().sum().item() for key, value in context.items()} == {"deter": 0.0, "stoch": 0.0}


# The queue of fresh sequences


def test_each_fresh_sequence_is_drawn_once_before_anything_else() -> None:
    replay = make(2, capacity=400, batch_size=4, length=5)
    Life(replay, 0).live(1 + 5 * 6)
    drawn = [tuple(row) for _ in range(3) for row in replay.sample().index.tolist()]  # type: ignore[union-attr]
    assert drawn == [(env, start) for start in range(1, 31, 5) for env in range(2)]
    assert replay.stats()["fresh"] == 0
    replay.sample()


def test_online_fraction_bounds_the_fresh_rows_of_a_batch() -> None:
    replay = make(2, capacity=400, batch_size=4, length=5, online_fraction=0.5)
    Life(replay, 0).live(1 + 5 * 6)
    for k in range(6):
        index = replay.sample().index
        assert index is not None and index[:2].tolist() == [[0, 1 + 5 * k], [1, 1 + 5 * k]]
        assert replay.stats()["fresh"] == 12 - 2 * (k + 1)


def test_fresh_sequences_that_were_overwritten_are_dropped() -> None:
    replay = make(1, capacity=10, batch_size=1, length=3)
    life = Life(replay, 0)
    life.live(31)
    # held: 21..30; fresh starts 1, 4, ..., 28; the oldest whole one with its context is 22
    drawn = [replay.sample().index.tolist()[0][1] for _ in range(3)]  # type: ignore[union-attr]
    assert drawn == [22, 25, 28] and replay.stats()["fresh"] == 0


# Write-back


def test_write_back_changes_what_is_stored() -> None:
    replay = make(1, capacity=20, batch_size=1, length=3)
    Life(replay, 0, end=0.0).live(4)
    batch = replay.sample()
    deter = torch.tensor([[[0.1, -2.5, 3e4], [1e-3, 7.0, 1.0], [9.0, 8.0, 7.0]]]).to(torch.bfloat16)
    stoch = torch.tensor([[[31, 0], [255, 7], [1, 2]]], dtype=torch.uint8)
    before = replay.digest()
    replay.write_back(batch, Update(metrics={}, memory={"deter": deter, "stoch": stoch}))
    assert replay.digest() != before
    # step 0 is kept, 1..3 are new
    assert torch.equal(replay.storage.grid("memory/deter")[0, 1:4], deter[0])
    assert torch.equal(replay.storage.grid("memory/stoch")[0, 1:4], stoch[0])
    later = Life(replay, 1, end=0.0)
    later.live(1)
    index = torch.tensor([[0, 2]])
    context = replay._gather(index, None).context
    assert torch.equal(context["deter"], deter[:, 0]) and torch.equal(context["stoch"], stoch[:, 0])


def test_write_back_skips_steps_overwritten_since() -> None:
    replay = make(1, capacity=6, batch_size=1, length=3)
    life = Life(replay, 0)
    life.live(4)
    batch = replay.sample()  # steps 1..3
    life.live(4)  # holds 2..7; step 1's slot now holds step 7
    kept = {key: replay.storage.grid(f"memory/{key}").clone() for key in MEMORY}
    replay.write_back(batch, Update(metrics={}, memory=fresh_memory(batch, 9)))
    for key in MEMORY:
        now = replay.storage.grid(f"memory/{key}")
        assert (now[0, [2, 3]] == 9).all()
        assert torch.equal(now[0, [0, 1, 4, 5]], kept[key][0, [0, 1, 4, 5]])


def test_write_back_of_overlapping_sequences_keeps_the_last_row() -> None:
    replay = make(1, capacity=20, batch_size=3, length=3)
    Life(replay, 0).live(9)
    batch = replace(replay.sample(), index=torch.tensor([[0, 4], [0, 3], [0, 4]]))
    memory = fresh_memory(batch, 0)
    for row in range(3):
        memory["stoch"][row] = torch.arange(3)[:, None] + 10 * (row + 1)
    replay.write_back(batch, Update(metrics={}, memory=memory))
    assert replay.storage.grid("memory/stoch")[0, 3:7, 0].tolist() == [20, 30, 31, 32]


def test_scatter_targets_give_equal_rows_equal_values() -> None:
    """What makes the scatter deterministic on a GPU, where the order of writes is not."""
    replay = make(2, capacity=20, batch_size=3, length=3)
    Life(replay, 0).live(9)
    rows = replay._targets(torch.tensor([[0, 4], [0, 3], [1, 4]]))
    assert rows.tolist() == [4, 5, 6, 3, 4, 5, 14, 15, 16]
    assert latest_of_equal(rows).tolist() == [4, 5, 2, 3, 4, 5, 6, 7, 8]


def test_write_back_needs_an_index_and_the_memory_of_the_spec() -> None:
    replay = make()
    Life(replay, 0).live(19)
    batch = replay.sample()
    with pytest.raises(ValueError, match=r"needs batch\.index"):
        replay.write_back(replace(batch, index=None), Update(metrics={}, memory={}))
    with pytest.raises(ValueError, match=r"needs memory for \['deter', 'stoch'\]"):
        replay.write_back(batch, Update(metrics={}, memory={"deter": fresh_memory(batch, 0)["deter"]}))
    wrong = fresh_memory(batch, 0) | {"deter": torch.zeros(4, 3, 3)}
    with pytest.raises(ValueError, match=r"must be torch.bfloat16 \(4, 3, 3\), got torch.float32"):
        replay.write_back(batch, Update(metrics={}, memory=wrong))


# Priorities


def test_prioritised_draws_follow_the_priorities() -> None:
    replay = make(
        2, capacity=20, batch_size=4000, length=2, sampler="prioritized", priority_exponent=0.5, online_fraction=0
    )
    Life(replay, 0).live(13)  # holds 3..12, starts 4..11
    batch = replace(replay.sample(), index=torch.tensor([[e, s] for e in range(2) for s in range(3, 12, 2)]))
    priority = torch.arange(20, dtype=torch.float32).reshape(10, 2)
    replay.write_back(batch, Update(metrics={}, memory={}, priority=priority))
    drawn = replay.sample()
    assert drawn.index is not None and drawn.weight is not None
    counts = torch.bincount(drawn.index[:, 0] * 8 + drawn.index[:, 1] - 4, minlength=16).numpy()
    expected = np.sqrt(np.concatenate([np.arange(1, 9), np.arange(11, 19)]))
    assert chisquare(counts, expected / expected.sum() * 4000).pvalue > 1e-3
    # weight ~ 1 / P^beta
    mass = torch.from_numpy(expected)[drawn.index[:, 0] * 8 + drawn.index[:, 1] - 4]
    assert torch.allclose(drawn.weight.double(), (mass.min() / mass) ** 0.4, atol=1e-4)
    assert drawn.weight.max() == 1


def test_new_steps_get_the_highest_priority_seen() -> None:
    replay = make(1, capacity=30, batch_size=2000, length=2, sampler="prioritized", priority_exponent=1.0)
    life = Life(replay, 0)
    life.live(11)  # starts 1..9
    batch = replace(replay.sample(), index=torch.tensor([[0, s] for s in range(1, 10, 2)]))
    low = torch.full((5, 2), 1e-3)
    low[0, 0] = 50.0
    replay.write_back(batch, Update(metrics={}, memory={}, priority=low))
    life.live(1)
    index = replay.sample().index
    assert index is not None
    # start 10 was added before the maximum rose to 50, so it has 1; later steps get 50
    share = torch.bincount(index[:, 1], minlength=11) / len(index)
    assert share[1] > 0.9
    life.live(2)  # starts 11, 12: step 11 came after
    index = replay.sample().index
    assert index is not None
    share = torch.bincount(index[:, 1], minlength=13) / len(index)
    assert share[1] + share[11] + share[12] > 0.95 and min(share[11], share[12]) > 0.25


def test_priorities_that_are_not_finite_are_ignored() -> None:
    replay = make(1, capacity=30, batch_size=2, length=2, sampler="prioritized")
    Life(replay, 0).live(11)
    before = replay.digest()
    batch = replay.sample()
    bad = torch.tensor([[float("nan"), float("inf")], [float("-inf"), float("nan")]])
    replay.write_back(batch, Update(metrics={}, memory={}, priority=bad))
    assert replay._sampler.per_step["priority"].tolist() == [1.0] * 31
    assert before != replay.digest()  # the draw moved the generator, so the comparison above means something


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40000), seed=st.integers(0, 100), rounds=st.integers(1, 4))
def test_an_updated_tree_equals_one_built_afresh_and_finds_every_point(size: int, seed: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    tree, weights = SumTree(size, CPU), np.zeros(size, np.int64)
    for _ in range(rounds):
        leaf = rng.choice(size, rng.integers(1, min(size, 300) + 1), replace=False)
        weights[leaf] = rng.integers(0, 2**39, len(leaf))
        tree.assign(torch.from_numpy(leaf), torch.from_numpy(weights[leaf]))
    afresh = SumTree(size, CPU)
    afresh.assign(torch.arange(size), torch.from_numpy(weights))
    for one, other in zip(tree.levels, afresh.levels):
        assert torch.equal(one, other)
    total = int(weights.sum())
    assert int(tree.total) == total
    if total:
        points = np.append(rng.integers(0, total, 50), [0, total - 1])
        expected = np.searchsorted(weights.cumsum(), points, side="right")
        assert tree.find(torch.from_numpy(points)).tolist() == expected.tolist()


def test_a_tree_that_followed_the_window_equals_one_restored_there() -> None:
    walked = PrioritizedSampler(2, 9, CPU, exponent=0.8, importance=0.4)
    rng = np.random.default_rng(0)
    for total in (4, 5, 9, 10, 17, 40, 41):
        window = Window(num_envs=2, slots=9, length=3, low=max(0, total - 9), total=total)
        index = walked.draw(6, window, rng).index
        rows = index[:, 0] * 9 + index[:, 1] % 9
        walked.update(rows.unique(), torch.rand(len(rows.unique()), generator=torch.Generator().manual_seed(total)))
        restored = PrioritizedSampler(2, 9, CPU, exponent=0.8, importance=0.4)
        restored._priority.copy_(walked._priority)
        restored.restore(walked.state(), window)
        assert torch.equal(restored._tree.leaves, walked._tree.leaves)
        assert (walked._tree.leaves > 0).sum() == window.starts


# Readiness, budget, errors


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 1024 + 64), (16, 128)])
def test_the_first_batch_waits_for_batch_size_times_length_starts(num_envs: int, steps: int) -> None:
    memory: dict[str, ArraySpec] = {}
    replay = make(num_envs, memory=memory, capacity=4000, batch_size=16, length=64)
    life = Life(replay, 0)
    life.live(steps - 1)
    assert not replay.is_ready
    life.live(1)
    assert replay.is_ready and replay.window.starts == 1024


def test_a_small_ring_is_ready_when_it_is_full() -> None:
    replay = make(1, capacity=10, batch_size=16, length=8)
    life = Life(replay, 0)
    life.live(9)
    assert not replay.is_ready
    life.live(1)
    assert replay.is_ready
    with pytest.raises(UserError, match=r"min_starts 3 can never be reached.* at most 2 start"):
        make(1, capacity=10, length=8, min_starts=3)


def test_sampling_too_early_says_so() -> None:
    replay = make()
    Life(replay, 0).live(3)
    with pytest.raises(ValueError, match="holds 3 steps per environment, too few"):
        replay.sample()


def test_a_capacity_over_the_budget_is_refused_with_the_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "free_memory", lambda device: 1 << 20)
    with pytest.raises(UserError, match=r"set replay.capacity to at most (\d+)") as caught:
        make(2, capacity=1_000_000)
    fitting = int(re.findall(r"at most (\d+)", str(caught.value))[0])
    make(2, capacity=fitting)
    with pytest.raises(UserError):
        make(2, capacity=fitting + 2)


def test_auto_takes_the_learners_device_where_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, config = torch.device("cuda"), ReplayConfig(capacity=100, length=3)
    monkeypatch.setattr(storage_module, "free_memory", lambda device: {"cuda": 1000, "cpu": 10**9}[device.type])
    assert choose_device(config, 5, 1, cuda) == cuda
    assert choose_device(config, 6, 1, cuda) == CPU
    assert choose_device(replace(config, device="host"), 5, 1, cuda) == CPU
    with pytest.raises(UserError, match="free on cuda"):
        choose_device(replace(config, device="learner"), 6, 1, cuda)


def test_a_capacity_that_holds_no_sequence_per_environment_is_refused() -> None:
    with pytest.raises(UserError, match=r"leaves 3 steps to each of 8 environments.* at least 32"):
        make(8, capacity=31)


def test_bytes_are_counted_to_the_last_one() -> None:
    spec = EnvSpec(name="test", obs=OBS, action=CONTINUOUS)
    per_step = 48 + 8 + 8 + 4 + 3 + 6 + 2
    assert bytes_per_step(spec, MEMORY) == per_step
    assert bytes_per_step(spec, MEMORY, "prioritized") == per_step + 12
    replay = make(2, capacity=41)
    Life(replay, 0).live(7)
    assert (replay.nbytes_now, replay.nbytes_capacity) == (14 * per_step, 40 * per_step)
    assert replay.stats()["bytes"] == 14 * per_step


def resident() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth() -> tuple[int, int, int]:
    """Of a replay of 80,000 steps while 12,800 are written: bytes that this process grew by, bytes stored, capacity."""
    spec = EnvSpec(name="test", obs={"image": ArraySpec(shape=(64, 64, 3), dtype="uint8")}, action=CONTINUOUS)
    config = ReplayConfig(capacity=80_000)
    replay = make_replay(config, spec, {}, 16, device=CPU, seed=0)
    step = Step(
        obs={"image": torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8)},
        reward=torch.zeros(16),
        is_first=torch.zeros(16, dtype=torch.bool),
        is_last=torch.zeros(16, dtype=torch.bool),
        is_terminal=torch.zeros(16, dtype=torch.bool),
    )
    for _ in range(10):
        replay.add(step, torch.zeros(16, 2), {})
    before, held = resident(), replay.nbytes_now
    for _ in range(800):
        replay.add(step, torch.zeros(16, 2), {})
    return resident() - before, replay.nbytes_now - held, replay.nbytes_capacity


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_resident_memory_grows_by_what_is_stored_and_no_more() -> None:
    # a process of its own: one that has trained before keeps freed memory, and grows by less
    asked = "from tests.unit.test_replay import growth; print(*growth())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", asked], cwd=root, capture_output=True, text=True, check=True)
    grown, stored, capacity = map(int, done.stdout.split())
    assert stored > 150 << 20
    assert 0.95 * stored < grown < 1.05 * stored
    assert capacity > 6 * stored  # what was not written takes no memory


def test_steps_that_do_not_fit_the_spec_are_refused() -> None:
    replay = make(1)
    step, action, memory = collate([example_row()])
    replay.add(step, action, memory)
    image = step.obs["image"]
    as_float = {"image": image.float()}
    for wrong, told in (
        (replace(step, obs={"image": image}), r"keys \['image', 'vector'\] of the spec, got \['image'\]"),
        (replace(step, obs=step.obs | as_float), r"obs/image.* must be torch.uint8 \(1, 4, 4, 3\), got"),
        (replace(step, reward=torch.zeros(1, 1)), r"reward of a step must be torch.float32 \(1,\), got"),
    ):
        with pytest.raises(ValueError, match=told):
            replay.add(wrong, action, memory)
    with pytest.raises(ValueError, match=r"actions of a step must be \(1, 2\), got \(1, 3\)"):
        replay.add(step, torch.zeros(1, 3), memory)
    with pytest.raises(ValueError, match=r"memory must have the keys"):
        replay.add(step, action, {"deter": memory["deter"]})
    assert replay.total_steps == 1


def example_row() -> dict[str, Any]:
    return {
        "image": np.zeros((4, 4, 3), np.uint8),
        "vector": np.zeros(2, np.float32),
        "action": np.zeros(2, np.float32),
        "reward": np.float32(0),
        "is_first": True,
        "is_last": False,
        "is_terminal": False,
        "deter": torch.zeros(3, dtype=torch.bfloat16),
        "stoch": torch.zeros(2, dtype=torch.uint8),
    }


def test_a_type_that_torch_cannot_store_is_named() -> None:
    with pytest.raises(UserError, match="memory\\['text'\\] has type 'object'"):
        make(memory={"text": ArraySpec(shape=(), dtype="object")})


def test_digests_tell_contents_apart() -> None:
    digests = []
    for seed, steps in ((0, 30), (0, 30), (1, 30), (0, 31)):
        replay = make(1, capacity=12)
        Life(replay, seed).live(steps)
        digests.append(replay.digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_peek_may_be_longer_than_what_is_trained_on_and_disturbs_nothing():
    obs = {"x": ArraySpec(shape=(1,), dtype="float32")}
    spec = EnvSpec(name="x", obs=obs, action=ActionSpec(kind="continuous", size=1))
    config = ReplayConfig(capacity=100, batch_size=4, length=5, min_starts=1)
    replay = make_replay(config, spec, {}, 1, device=torch.device("cpu"), seed=0)
    for t in range(40):
        flag = torch.tensor([False])
        step = Step(
            obs={"x": torch.full((1, 1), float(t))}, reward=torch.zeros(1),
            is_first=torch.tensor([t == 0]), is_last=flag, is_terminal=flag,
        )
        replay.add(step, torch.zeros(1, 1), {})
    before = replay.digest()
    long = replay.peek(rows=3, length=20)
    assert long.obs["x"].shape == (3, 20, 1) and (long.obs["x"].diff(dim=1) == 1).all()
    assert replay.peek(length=1000).reward.shape == (4, 5), "more than is held: as long as trained on"
    assert replay.digest() == before
