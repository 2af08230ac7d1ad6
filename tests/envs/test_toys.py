"""The built-in pixel games: rules, optima, pictures, streams, copies."""

from __future__ import annotations

import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.seeds import env_seed
from worldmodel.envs.toys import ToyBatch, ToyConfig, expert
from worldmodel.envs.toys.catch import FALL, HALF, RADIUS
from worldmodel.envs.toys.draw import Sprite
from worldmodel.envs.toys.glide import DAMPING, THRUST
from worldmodel.errors import EnvError
from worldmodel.specs import BatchStep, BuildsBatch, Clones, evaluation_env
from worldmodel.train.codec import decode, encode

CONFIGS = [
    ToyConfig(task=task, distractor=distractor, delay=3)
    for task in ("catch", "glide", "recall") for distractor in ("none", "moving")
]
by_name = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def play(toys: ToyBatch, steps: int, seed: int = 0, reset: bool = True) -> list[BatchStep]:
    rng = np.random.default_rng(seed)
    told = [toys.reset(11)] if reset else []
    for _ in range(steps):
        told.append(toys.step(rng.uniform(-1, 1, (64, toys.spec.action.size)).astype(np.float32)[: toys.num_envs]))
    return told


def same(a: BatchStep, b: BatchStep, rows_a: slice = slice(None), rows_b: slice = slice(None)) -> bool:
    fields = ("reward", "is_first", "is_last", "is_terminal")
    return np.array_equal(a.obs["image"][rows_a], b.obs["image"][rows_b]) and all(
        np.array_equal(getattr(a, name)[rows_a], getattr(b, name)[rows_b]) for name in fields
    )


def returns(toys: ToyBatch, act, seed: int = 3) -> np.ndarray:
    toys.reset(seed)
    total = np.zeros(toys.num_envs)
    for _ in range(toys.spec.max_steps or 0):
        step = toys.step(act(toys))
        total += step.reward
    assert step.is_last.all()
    return total


@by_name
def test_steps_keep_to_the_spec(config):
    toys = config.build_batch(3)
    assert isinstance(config, BuildsBatch)
    assert pickle.loads(pickle.dumps(config)) == config
    for step in play(toys, 120):
        assert step.obs["image"].shape == (3, 32, 32, 3) and step.obs["image"].dtype == np.uint8
        assert step.reward.dtype == np.float32 and step.reward.min() >= 0 and step.reward.max() <= 1
        for flag in (step.is_first, step.is_last, step.is_terminal):
            assert flag.dtype == bool and flag.shape == (3,)
        assert not (step.is_terminal & ~step.is_last).any()
        assert not (step.is_first & step.is_last).any()
        assert (step.reward[step.is_first] == 0).all()


@by_name
def test_the_step_after_the_last_begins_an_episode_and_ignores_the_action(config):
    toys, other = config.build_batch(2), config.build_batch(2)
    length = toys.spec.max_steps
    a, b = play(toys, length), play(other, length)
    assert [step.is_last.all() for step in a] == [False] * length + [True]
    nothing = np.full((2, toys.spec.action.size), np.nan, np.float32)
    c, d = toys.step(nothing), other.step(np.ones_like(nothing))
    assert c.is_first.all() and not c.is_last.any() and (c.reward == 0).all()
    assert same(a[-1], b[-1]) and same(c, d)
    assert not np.array_equal(c.obs["image"], a[0].obs["image"])


def test_catch_and_recall_end_terminal_and_glide_by_its_time_limit():
    ends = {}
    for task in ("catch", "glide", "recall"):
        toys = ToyConfig(task=task).build_batch(1)
        ends[task] = (toys.spec.max_steps, bool(play(toys, toys.spec.max_steps)[-1].is_terminal[0]))
    assert ends == {"catch": (55, True), "glide": (50, False), "recall": (10, True)}


@by_name
def test_equal_seeds_give_equal_games_whatever_the_number_of_rows(config):
    many, few = play(config.build_batch(5), 60), play(config.build_batch(2), 60)
    assert all(same(a, b, slice(2)) for a, b in zip(many, few))
    assert not np.array_equal(many[0].obs["image"][0], many[0].obs["image"][1]) or config.task == "recall"


@by_name
def test_a_single_game_is_a_row_of_a_batch(config):
    toys, singles = config.build_batch(2), [config.build(7), config.build(9)]
    rng = np.random.default_rng(0)
    batch = toys.reset(4)
    told = [single.reset(env_seed(4, i)) for i, single in enumerate(singles)]
    for _ in range(2 * (toys.spec.max_steps + 1)):
        for i, step in enumerate(told):
            assert np.array_equal(step.obs["image"], batch.obs["image"][i]) and step.reward == batch.reward[i]
            assert (step.is_first, step.is_last, step.is_terminal) == (
                batch.is_first[i], batch.is_last[i], batch.is_terminal[i],
            )
        action = rng.uniform(-1, 1, (2, toys.spec.action.size)).astype(np.float32)
        batch = toys.step(action)
        told = [
            single.reset() if step.is_last else single.step(a) for single, step, a in zip(singles, told, action)
        ]


@by_name
def test_a_state_put_into_another_batch_goes_on_bit_for_bit(config):
    toys = config.build_batch(3)
    for steps in (toys.spec.max_steps // 2, toys.spec.max_steps):
        play(toys, steps)
        state = decode(encode(toys.get_state()))
        ahead = play(toys, 70, seed=5, reset=False)
        other = config.build_batch(3)
        other.set_state(state)
        assert all(same(a, b) for a, b in zip(ahead, play(other, 70, seed=5, reset=False), strict=True))


def test_a_state_is_copied_between_single_games():
    one, two = ToyConfig(task="glide").build(), ToyConfig(task="glide").build(1)
    assert isinstance(one, Clones)
    one.reset(3)
    one.step(np.ones(2, np.float32))
    two.set_state(one.get_state())
    assert two.get_state() == one.get_state()
    assert np.array_equal(one.step(np.ones(2)).obs["image"], two.step(np.ones(2)).obs["image"])
    assert np.array_equal(one.reset().obs["image"], two.reset().obs["image"])


@by_name
def test_what_was_returned_is_the_callers_to_keep(config):
    toys = config.build_batch(2)
    told = play(toys, 60)
    kept = [pickle.dumps(step) for step in told]
    play(toys, 60)
    assert kept == [pickle.dumps(step) for step in told]
    told[-1].is_last[:] = True
    assert not toys.get_state()[0]["pending"] or told[-1].is_terminal.any()


@pytest.mark.parametrize("task", ["catch", "recall"])
def test_the_expert_always_reaches_the_optimum(task):
    toys = ToyConfig(task=task).build_batch(500)
    assert (returns(toys, expert) == toys.spec.reference["optimum"]).all()


def test_the_glide_expert_scores_what_the_reference_says():
    toys = ToyConfig(task="glide").build_batch(500)
    got = returns(toys, expert)
    # standard error of 500 episodes: 0.06
    assert abs(got.mean() - toys.spec.reference["optimum"]) < 0.25
    assert got.min() > 40


def test_against_the_wind_random_play_stays_on_the_left_and_the_expert_arrives():
    toys = ToyConfig(task="glide", course="upwind").build_batch(500)
    assert toys.spec.name == "toy/glide+upwind"
    rng, farthest = np.random.default_rng(2), np.zeros(500)

    def play(toys: ToyBatch) -> np.ndarray:
        np.maximum(farthest, toys.task.state["place"][:, 0], out=farthest)
        return rng.uniform(-1, 1, (500, 2)).astype(np.float32)

    got = returns(toys, play)
    assert abs(got.mean() - toys.spec.reference["random"]) < 4.5 * got.std() / np.sqrt(500)
    assert np.quantile(farthest, 0.98) < 0.21 and (toys.task.state["target"][:, 0] >= 0.8).all()
    best = returns(ToyConfig(task="glide", course="upwind").build_batch(500), expert)
    # standard error of 500 episodes: 0.08
    assert abs(best.mean() - toys.spec.reference["optimum"]) < 0.35 and best.min() > 30


@pytest.mark.parametrize("task", ["catch", "glide", "recall"])
def test_random_play_scores_what_the_reference_says(task):
    toys = ToyConfig(task=task).build_batch(1000)
    rng = np.random.default_rng(1)

    def act(toys: ToyBatch) -> np.ndarray:
        if toys.spec.action.kind == "continuous":
            return rng.uniform(-1, 1, (1000, 2)).astype(np.float32)
        size = toys.spec.action.size
        return np.eye(size, dtype=np.float32)[rng.integers(size, size=1000)]

    got = returns(toys, act)
    assert abs(got.mean() - toys.spec.reference["random"]) < 4.5 * got.std() / np.sqrt(1000)


def test_a_ball_can_be_caught_from_anywhere_by_following_it():
    """The optimum needs no more than two pictures: walking towards the ball of now catches every ball."""
    toys = ToyConfig(task="catch").build_batch(500)

    def follow(toys: ToyBatch) -> np.ndarray:
        task = toys.task
        off = task._x(task.state["tick"] % 14) - task.state["paddle"]
        return np.eye(3, dtype=np.float32)[1 + np.sign(off).astype(int) * (np.abs(off) > 1.5)]

    assert (returns(toys, follow) == 4).all()


def test_catch_shows_ball_and_paddle_where_they_are():
    toys = ToyConfig(task="catch").build_batch(4)
    toys.reset(0)
    for _ in range(9):
        image = toys.step(np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]).obs["image"].astype(int)
        state = toys.task.state
        for n in range(4):
            fallen = state["tick"] % 14
            red = np.maximum(image[n, :28, :, 0] - 60, 0)
            y, x = (np.average(np.arange(red.shape[i]) + 0.5, weights=red.sum(1 - i)) for i in (0, 1))
            assert abs(x - toys.task._x(fallen)[n]) < 0.25 and abs(y - (RADIUS + FALL * fallen[n])) < 0.25
            blue = np.flatnonzero(image[n, 31, :, 2] == 255)
            assert (blue[0], blue[-1] + 1) == (state["paddle"][n] - HALF, state["paddle"][n] + HALF)


def test_glide_moves_by_thrust_and_damping_and_stops_at_walls():
    toys = ToyConfig(task="glide").build_batch(1)
    toys.reset(0)
    task = toys.task
    task.state["place"][:] = 0.5
    toys.step(np.array([[1.0, -0.5]], np.float32))
    toys.step(np.array([[9.0, 0.0]], np.float32))
    speed = np.array([THRUST * DAMPING + THRUST, -0.5 * THRUST * DAMPING])
    np.testing.assert_allclose(task.state["speed"][0], speed, rtol=1e-6)
    np.testing.assert_allclose(task.state["place"][0], 0.5 + speed + [THRUST, -0.5 * THRUST], rtol=1e-6)
    for _ in range(20):
        toys.step(np.array([[1.0, 0.0]], np.float32))
    assert task.state["place"][0, 0] == 1.0 and task.state["speed"][0, 0] == 0.0


def test_glide_pays_one_near_the_target_and_a_tenth_at_the_margin():
    toys = ToyConfig(task="glide").build_batch(3)
    toys.reset(0)
    toys.task.state["target"][:] = 0.1
    toys.task.state["place"][:] = [[0.1, 0.14], [0.65, 0.1], [0.1, 0.9]]
    reward = toys.step(np.zeros((3, 2), np.float32)).reward
    np.testing.assert_allclose(reward, [1.0, 0.1, 0.1 ** (1.5**2)], rtol=1e-5)


def test_glide_begins_half_a_room_away_from_the_target():
    toys = ToyConfig(task="glide").build_batch(2000)
    toys.reset(0)
    state = toys.task.state
    assert np.linalg.norm(state["place"] - state["target"], axis=1).min() >= 0.5
    assert state["place"].min() >= 0.05 and state["place"].max() <= 0.95


@pytest.mark.parametrize("delay", [0, 8])
def test_recall_shows_the_cue_once_then_nothing_and_pays_only_the_answer(delay):
    toys = ToyConfig(task="recall", delay=delay).build_batch(64)
    first = toys.reset(0).obs["image"]
    cue = toys.task.state["cue"].copy()
    assert set(cue) == {0, 1, 2, 3}
    # only the corner of the cue is bright
    corners = first.reshape(64, 2, 16, 2, 16, 3).max((2, 4, 5)).reshape(64, 4)
    assert np.array_equal(corners.argmax(1), cue) and ((corners > 100).sum(1) == 1).all()
    rng = np.random.default_rng(0)
    for _ in range(delay):
        step = toys.step(np.eye(4, dtype=np.float32)[rng.integers(4, size=64)])
        assert np.unique(step.obs["image"].reshape(-1, 3), axis=0).tolist() == [[34, 34, 40]]
        assert not step.reward.any() and not step.is_last.any()
    asks = toys.step(np.eye(4, dtype=np.float32)[cue])
    assert not asks.reward.any() and np.unique(asks.obs["image"].reshape(64, -1), axis=0).shape[0] == 1
    answer = rng.integers(4, size=64)
    step = toys.step(np.eye(4, dtype=np.float32)[answer])
    assert np.array_equal(step.reward, (answer == cue).astype(np.float32)) and step.is_terminal.all()


def test_recall_with_a_shortest_delay_grows_by_right_answers_alone_and_is_evaluated_on_the_longest():
    config = ToyConfig(task="recall", delay=15, shortest=1)
    toys = config.build_batch(2)
    toys.reset(0)
    lengths, shown = ([], []), []
    ticks = np.zeros(2, int)
    for _ in range(200):
        # the first game answers right for its first fourteen episodes, the second every third time not
        answer = toys.task.state["cue"] + [len(lengths[0]) >= 14, len(lengths[1]) % 3 == 2]
        step = toys.step(np.eye(4, dtype=np.float32)[answer % 4])
        ticks = np.where(step.is_first, 0, ticks + 1)
        for row in np.flatnonzero(step.is_last):
            lengths[row].append(int(ticks[row]) - 2)
            # the last picture shows the disc
            shown.append(step.obs["image"][row].max() > 150)
    assert lengths[0][:17] == [1] * 3 + [3] * 3 + [7] * 3 + [15] * 6 + [7, 3] and all(shown)
    assert set(lengths[1]) == {1} and toys.spec.max_steps == 17
    assert evaluation_env(config) == ToyConfig(task="recall", delay=15) and evaluation_env(ToyConfig()) == ToyConfig()
    assert (config.name, evaluation_env(config).name) == ("toy/recall1-15", "toy/recall15")
    with pytest.raises(ValueError, match="shortest must be from 0 to delay=8"):
        ToyConfig(shortest=9)


@pytest.mark.parametrize("task", ["catch", "glide", "recall"])
def test_the_distractor_changes_every_picture_and_nothing_else(task):
    plain, moving = (ToyConfig(task=task, distractor=which).build_batch(3) for which in ("none", "moving"))
    before = None
    for a, b in zip(play(plain, 60), play(moving, 60)):
        assert np.array_equal(a.reward, b.reward) and np.array_equal(a.is_last, b.is_last)
        image = b.obs["image"]
        assert before is None or all((image[n] != before[n]).mean() > 0.3 for n in range(3))
        before = image
    assert all(plain.task.state[key].tolist() == moving.task.state[key].tolist() for key in plain.task.state)


def test_the_game_is_the_same_at_every_size():
    runs = [play(ToyConfig(task="catch", size=size).build_batch(3), 60) for size in (32, 48, 64)]
    assert all(np.array_equal(a.reward, b.reward) for a, b in zip(runs[0], runs[2]))
    halved = runs[2][5].obs["image"].reshape(3, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - runs[0][5].obs["image"]).mean() < 1.0
    assert runs[1][0].obs["image"].shape == (3, 48, 48, 3)


@settings(max_examples=50, deadline=None)
@given(x=st.floats(2.0, 30.0), y=st.floats(2.0, 30.0), size=st.sampled_from([32, 48, 64]))
def test_a_sprite_covers_its_area_wherever_it_is(x, y, size):
    sprite = Sprite("box", (2.0, 1.0), (256 - 1,) * 3, size)
    image = np.zeros((1, size, size, 3), np.uint8)
    sprite.paste(image, np.array([x]), np.array([y]))
    weight = image[0, :, :, 0].astype(float)
    scale = size / 32
    assert abs(weight.sum() / 255 - 8 * scale**2) < 0.1 * scale**2
    centre = [np.average(np.arange(size) + 0.5, weights=weight.sum(axis)) / scale for axis in (0, 1)]
    assert abs(centre[0] - x) < 0.15 and abs(centre[1] - y) < 0.15


@pytest.mark.parametrize("task", ["Catch", "Glide", "Recall"])
def test_gymnasium_accepts_every_toy_without_a_warning(task):
    env = gymnasium.make(f"worldmodel/{task}-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    env.reset(seed=1)
    assert env.render().shape == (128, 128, 3)
    env.close()


def test_gymnasium_plays_the_same_game():
    env = gymnasium.make("worldmodel/Catch-v0")
    toy = ToyConfig(task="catch").build()
    image, _ = env.reset(seed=8)
    assert np.array_equal(image, toy.reset(8).obs["image"])
    for t in range(55):
        image, reward, terminated, truncated, _ = env.step(t % 3)
        step = toy.step(np.eye(3)[t % 3])
        assert np.array_equal(image, step.obs["image"]) and reward == step.reward
        assert (terminated, truncated) == (step.is_terminal, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"task": "cach"}, "did you mean 'catch'"), ({"size": 40}, "multiple of 16"), ({"delay": -1}, "negative"),
     ({"distractor": "static"}, "unknown distractor")],
)
def test_mistakes_in_the_configuration_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        ToyConfig(**change)


def test_mistakes_in_use_are_named():
    toys, toy = ToyConfig(task="glide").build_batch(2), ToyConfig(task="recall", delay=0).build()
    with pytest.raises(EnvError, match="before reset"):
        toys.step(np.zeros((2, 2), np.float32))
    toys.reset(0)
    with pytest.raises(EnvError, match=r"\(N, A\) = \(2, 2\), got \(2, 3\)"):
        toys.step(np.zeros((2, 3), np.float32))
    with pytest.raises(EnvError, match="NaN"):
        toys.step(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(EnvError, match="1 states were given for 2"):
        toys.set_state(toys.get_state()[:1])
    with pytest.raises(EnvError, match="belongs to 'toy/glide'"):
        toy.set_state(toys.get_state()[0])
    toy.reset(0)
    for _ in range(2):
        toy.step(np.eye(4)[0])
    with pytest.raises(EnvError, match="after is_last"):
        toy.step(np.eye(4)[0])


def test_names_say_what_departs():
    names = [ToyConfig(task=t, distractor=d, size=s).name for t, d, s in
             (("catch", "none", 32), ("recall", "moving", 32), ("glide", "none", 64))]
    assert names == ["toy/catch", "toy/recall8+distractor", "toy/glide/64px"]


def test_toys_do_not_import_torch():
    code = "import sys, worldmodel.envs.toys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
