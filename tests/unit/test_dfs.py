"""Dynamic frequency-based sampling: the probabilities of the paper, without replacement, counted, saved."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from scipy import stats

from tests.unit.models import make_spec
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay
from worldmodel.replay.samplers import FrequencySampler, Window
from worldmodel.types import Step

CPU = torch.device("cpu")


def sampler(*, slots=8, num_envs=2, temperature=2.0, share=0.5, trained=None, dreamed=None) -> FrequencySampler:
    made = FrequencySampler(num_envs, slots, CPU, temperature=temperature, share=share)
    for name, counts in (("trained", trained), ("dreamed", dreamed)):
        if counts is not None:
            made.per_step[name][:-1] = torch.tensor(counts, dtype=torch.int32)
    return made


def window(*, low=0, total=8, slots=8, num_envs=2, length=3) -> Window:
    return Window(num_envs=num_envs, slots=slots, length=length, low=low, total=total)


TRAINED = [0, 3, 1, 0, 7, 2, 9, 9, 0, 1, 0, 4, 4, 0, 9, 9]
DREAMED = [0, 0, 5, 9, 1, 2, 0, 0, 0, 8, 8, 0, 30, 2, 0, 0]
STARTS = [(env, step) for env in range(2) for step in range(1, 6)]
"""Valid with a window of 3 over steps 0 to 7."""


def published(kind):
    """Slow: the paper's scores, alpha = beta = 1, and their softmax over valid starts."""
    scores = []
    for env, step in STARTS:
        v, b = TRAINED[env * 8 + step], DREAMED[env * 8 + step] * 0.5
        scores.append(-v if kind == "draw" else v - b - max(0.0, v - b))
    weights = [math.exp(s / 2.0) for s in scores]
    return {start: w / sum(weights) for start, w in zip(STARTS, weights)}


@pytest.mark.parametrize("kind", ["draw", "draw_windows"])
def test_single_draws_follow_the_papers_softmax(kind):
    rng, count, seen = np.random.default_rng(0), 4000, dict.fromkeys(STARTS, 0)
    made = sampler(trained=TRAINED, dreamed=DREAMED)
    for _ in range(count):
        for counter, held in zip(("trained", "dreamed"), (TRAINED, DREAMED)):
            made.per_step[counter][:-1] = torch.tensor(held, dtype=torch.int32)
        seen[tuple(getattr(made, kind)(1, window(), rng).index[0].tolist())] += 1
    probability = published(kind)
    result = stats.chisquare(list(seen.values()), [count * probability[s] for s in STARTS])
    assert result.pvalue > 1e-3


def test_pairs_without_replacement_follow_successive_draws():
    rng, count = np.random.default_rng(1), 4000
    small = {"slots": 5, "num_envs": 1}
    trained = [0, 0, 2, 4, 0]
    weights = [math.exp(-v / 2.0) for v in trained[1:4]]
    seen = dict.fromkeys(itertools.permutations((1, 2, 3), 2), 0)
    for _ in range(count):
        made = sampler(trained=trained, **small)
        pair = made.draw(2, window(total=5, length=2, **small), rng).index[:, 1].tolist()
        seen[tuple(pair)] += 1
    expected = []
    for one, two in seen:
        first = weights[one - 1] / sum(weights)
        expected.append(count * first * weights[two - 1] / (sum(weights) - weights[one - 1]))
    assert stats.chisquare(list(seen.values()), expected).pvalue > 1e-3


def test_every_draw_is_counted_at_its_start_alone():
    made, rng = sampler(), np.random.default_rng(2)
    drawn = made.draw(4, window(), rng).index
    rows = drawn[:, 0] * 8 + drawn[:, 1]
    assert len(set(rows.tolist())) == 4
    expected = torch.zeros(17, dtype=torch.int32)
    expected[rows] = 1
    assert torch.equal(made.per_step["trained"], expected) and not made.per_step["dreamed"].any()
    made.draw_windows(3, window(), rng)
    assert made.per_step["dreamed"].sum() == 3 and torch.equal(made.per_step["trained"], expected)


def test_asking_for_more_than_there_is_takes_all_again():
    made = sampler()
    drawn = made.draw(23, window(), np.random.default_rng(3)).index
    counts = made.per_step["trained"][:-1].view(2, 8)
    assert len(drawn) == 23 and sorted(set(map(tuple, drawn.tolist()))) == STARTS
    assert counts.sum() == 23 and counts[:, 1:6].min() == 2 and counts[:, 1:6].max() == 3


def test_starts_of_a_ring_that_has_wrapped_are_absolute_and_new_steps_are_unseen():
    made = sampler(trained=[9] * 16, dreamed=[9] * 16)
    made.added(3)
    assert made.per_step["trained"].view(-1)[:16].view(2, 8)[:, 3].tolist() == [0, 0]
    late = window(low=11, total=19)
    drawn = made.draw(200, late, np.random.default_rng(4)).index
    assert set(drawn[:, 1].tolist()) == set(range(12, 17))


def test_starts_drawn_thousands_of_times_more_often_are_still_ordered():
    trained = [0, 50_000, 20_000, 50_000, 50_000, 50_000] + [50_000] * 10
    made = sampler(trained=trained, temperature=1.0)
    assert made.draw(1, window(), np.random.default_rng(5)).index.tolist() == [[0, 2]]


def test_a_million_starts_are_drawn_from_in_one_pass():
    made = FrequencySampler(1, 1_000_000, CPU, temperature=10.0, share=1 / 64)
    wide = Window(num_envs=1, slots=1_000_000, length=64, low=0, total=1_000_000)
    began = time.process_time()
    drawn = made.draw(16, wide, np.random.default_rng(0)).index
    assert len(drawn) == 16 and time.process_time() - began < 3.0


def make(seed=0, **changes) -> RingReplay:
    sizes = {"capacity": 40, "batch_size": 3, "length": 5, "windows": 6, "window": 3}
    config = ReplayConfig(**(sizes | {"sampler": "dfs", "online_fraction": 0.0, "min_starts": 1} | changes))
    return RingReplay(config, make_spec(), {}, 2, home=CPU, device=CPU, seed=seed)


def fill(replay, steps, *, since=0):
    for t in range(since, since + steps):
        no = torch.zeros(2, dtype=torch.bool)
        step = Step(
            obs={"image": torch.full((2, 32, 32, 3), t % 256, dtype=torch.uint8)}, reward=torch.tensor([t, -t]).float(),
            is_first=no | (t == 0), is_last=no, is_terminal=no,
        )
        replay.add(step, torch.eye(3)[[t % 3, 0]], {})


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "dfs"])
def test_windows_come_with_every_batch_and_lie_in_replay(kind):
    replay = make(sampler=kind)
    fill(replay, 12)
    batch = replay.sample()
    starts = batch.starts
    assert batch.reward.shape == (3, 5) and starts.reward.shape == (6, 3) and starts.starts is None
    first = starts.reward[:, 0].abs()
    assert torch.equal(starts.reward.abs(), first[:, None] + torch.arange(3)) and first.min() >= 1
    assert torch.equal(starts.obs["image"][:, :, 0, 0, 0].float(), starts.reward.abs())
    assert replay.peek().starts is None


def test_counters_and_draws_go_on_after_a_load(tmp_path):
    replay = make()
    fill(replay, 12)
    for _ in range(5):
        replay.sample()
    replay.save(tmp_path)
    other = make(seed=9)
    other.load(tmp_path)
    assert other.digest() == replay.digest()
    for _ in range(3):
        a, b = replay.sample(), other.sample()
        assert torch.equal(a.index, b.index) and torch.equal(a.starts.reward, b.starts.reward)
    plain = make(sampler="uniform")
    fill(plain, 12)
    plain.save(tmp_path / "plain")
    other.load(tmp_path / "plain")
    assert not any(x.any() for x in other._sampler.per_step.values()), "a run that counted nothing starts at zero"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window": 9, "windows": 1}, "window must"), ({"windows": -1}, "windows"),
        ({"dfs_temperature": 0.0}, "positive"),
    ],
)
def test_impossible_numbers_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ReplayConfig(**({"length": 8} | wrong))
