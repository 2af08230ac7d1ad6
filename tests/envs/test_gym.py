"""Gymnasium: every space, every flag, sentences for what cannot be, and exact copies of classic control."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from worldmodel.envs import gym
from worldmodel.envs.gym import GymConfig, describe
from worldmodel.errors import EnvError
from worldmodel.specs import ActionSpec, ArraySpec, Clones, Env, EnvStep

CLASSIC = ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Acrobot-v1"]


class Scripted(gymnasium.Env[Any, Any]):
    """Says what a test wants it to say, and remembers the actions it got."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (2,), np.float64)
    action_space: spaces.Space = spaces.Discrete(3)
    ends: tuple[tuple[bool, bool], ...] = ()
    """(terminated, truncated) of each step; (False, False) after them."""
    got: list[Any]

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.got, self.observation = [], self.observation_space.sample()
        return self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.got.append(action)
        terminated, truncated = self.ends[len(self.got) - 1] if len(self.got) <= len(self.ends) else (False, False)
        self.observation = self.observation_space.sample()
        return self.observation, 1.0, terminated, truncated, {}


def make(monkeypatch: pytest.MonkeyPatch, repeat: int = 1, size: int = 64, **attributes: Any) -> tuple[Env, Scripted]:
    """Our environment around a Scripted one, by way of "module:function"."""
    scripted = Scripted(**attributes)
    scripted.observation_space.seed(0)
    monkeypatch.setattr(sys.modules[__name__], "scripted", lambda: scripted, raising=False)
    return GymConfig(id=f"{__name__}:scripted", repeat=repeat, size=size).build(), scripted


def one_hot(index: int, size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)[index]


def random_action(env: Env, rng: np.random.Generator) -> np.ndarray:
    size = env.spec.action.size
    if env.spec.action.kind == "discrete":
        return one_hot(int(rng.integers(size)), size)
    return rng.uniform(-1.2, 1.2, size).astype(np.float32)


def play(env: Env, steps: int, seed: int) -> list[EnvStep]:
    rng = np.random.default_rng(seed)
    lived = []
    for _ in range(steps):
        lived.append(env.step(random_action(env, rng)))
        if lived[-1].is_last:
            lived.append(env.reset())
    return lived


def assert_equal(a: list[EnvStep], b: list[EnvStep]) -> None:
    assert len(a) == len(b)
    for t, (x, y) in enumerate(zip(a, b)):
        assert (x.reward, x.is_first, x.is_last, x.is_terminal) == (y.reward, y.is_first, y.is_last, y.is_terminal), t
        for key in x.obs:
            np.testing.assert_array_equal(x.obs[key], y.obs[key], err_msg=f"step {t}, {key}")


def test_cartpole_is_what_gymnasium_says() -> None:
    env = GymConfig(id="CartPole-v1").build()
    bare = gymnasium.make("CartPole-v1")
    assert env.spec.name == "gym/CartPole-v1"
    assert env.spec.obs == {"vector": ArraySpec(shape=(4,), dtype="float32")}
    assert (env.spec.action.kind, env.spec.action.size) == ("discrete", 2)
    assert (env.spec.max_steps, env.spec.reference) == (500, {"optimum": 500.0})
    np.testing.assert_array_equal(env.reset(seed=3).obs["vector"], bare.reset(seed=3)[0])
    is_last = False
    for t in range(200):
        step = env.step(one_hot(t % 2, 2))
        raw, reward, terminated, truncated, _ = bare.step(t % 2)
        np.testing.assert_array_equal(step.obs["vector"], raw)
        assert (step.reward, step.is_last, step.is_terminal) == (reward, terminated or truncated, terminated)
        if is_last := step.is_last:
            break
    assert is_last, "blind alternation drops the pole"


@pytest.mark.parametrize(
    ("ends", "is_last", "is_terminal"),
    [
        ((False, False), False, False),
        ((True, False), True, True),
        ((False, True), True, False),
        ((True, True), True, True),
    ],
)
def test_terminated_and_truncated_become_terminal_and_last(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[bool, bool], is_last: bool, is_terminal: bool
) -> None:
    env, _ = make(monkeypatch, ends=(ends,))
    first = env.reset(seed=0)
    assert (first.is_first, first.is_last, first.is_terminal, first.reward) == (True, False, False, 0.0)
    step = env.step(one_hot(0, 3))
    assert (step.is_first, step.is_last, step.is_terminal) == (False, is_last, is_terminal)


def test_a_time_limit_is_not_terminal() -> None:
    env = GymConfig(id="Pendulum-v1", kwargs=(("max_episode_steps", 5),), repeat=2).build()
    assert (env.spec.max_steps, env.spec.name) == (3, "gym/Pendulum-v1/max_episode_steps=5,repeat=2")
    env.reset(seed=0)
    steps = [env.step(np.zeros(1, np.float32)) for _ in range(3)]
    assert [step.is_last for step in steps] == [False, False, True]
    assert not any(step.is_terminal for step in steps)


def test_repeat_sums_rewards_and_stops_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    env, scripted = make(monkeypatch, repeat=4, ends=((False, False),) * 5 + ((True, False),))
    env.reset(seed=0)
    first, second = env.step(one_hot(1, 3)), env.step(one_hot(2, 3))
    assert (first.reward, first.is_last) == (4.0, False)
    assert (second.reward, second.is_last, second.is_terminal) == (2.0, True, True)
    assert scripted.got == [1, 1, 1, 1, 2, 2]


def test_step_before_reset_after_the_end_or_with_a_wrong_action_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    env, _ = make(monkeypatch, ends=((True, False),))
    with pytest.raises(EnvError, match="call reset first"):
        env.step(one_hot(0, 3))
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"must have shape \(3,\), got \(2,\)"):
        env.step(one_hot(0, 2))
    env.step(one_hot(0, 3))
    with pytest.raises(EnvError, match="call reset first"):
        env.step(one_hot(0, 3))


def test_discrete_actions_start_where_the_space_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    env, scripted = make(monkeypatch, action_space=spaces.Discrete(3, start=-1))
    env.reset(seed=0)
    for index in range(3):
        env.step(one_hot(index, 3))
    assert scripted.got == [-1, 0, 1]


def test_finite_action_bounds_are_stretched_and_clipped_and_infinite_ones_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low, high = np.array([[-2.0, 0.1], [-np.inf, 0.0]]), np.array([[2.0, 0.7], [np.inf, np.inf]])
    env, scripted = make(monkeypatch, action_space=spaces.Box(low.astype("f4"), high.astype("f4"), dtype=np.float32))
    assert env.spec.action == ActionSpec(kind="continuous", size=4, is_bounded=False)
    env.reset(seed=0)
    for given in ([-1, -1, -3, -3], [1, 1, 5, 5], [9, -9, 0, 0.5], [0, 0, 0, 0], [0.5, 1 / 3, 1, 1]):
        env.step(np.array(given, np.float32))
    expected = [
        [[-2, 0.1], [-3, 0]],  # half-bounded: left alone but for the bound it has
        [[2, 0.7], [5, 5]],
        [[2, 0.1], [0, 0.5]],
        [[0, 0.4], [0, 0]],
        [[1, 0.5], [1, 1]],
    ]
    np.testing.assert_allclose(np.array(scripted.got), expected, rtol=1e-6, atol=1e-7)
    assert all(scripted.action_space.contains(action) for action in scripted.got)


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(0, 5, (2,), np.int32), spaces.Text(3)]
)
def test_other_actions_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch, space: spaces.Space) -> None:
    with pytest.raises(EnvError, match=f"the action is a {type(space).__name__}.*expected Discrete or a Box of floats"):
        make(monkeypatch, action_space=space)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((64, 64, 3), 64, (64, 64, 3)),
        ((96, 80, 3), 64, (64, 64, 3)),
        ((96, 80, 3), 0, (96, 80, 3)),
        ((40, 30, 1), 64, (40, 30, 1)),
        ((50, 40), 64, (50, 40, 1)),
        ((210, 160), 64, (64, 64, 1)),
        ((3, 50, 40), 64, (50, 40, 3)),
        ((4, 84, 84), 64, (64, 64, 4)),
        ((12, 96, 96), 48, (48, 48, 12)),
        ((84, 84, 12), 0, (84, 84, 12)),
        ((3, 3, 3), 64, (3, 3, 3)),
        ((2, 9, 4), 64, (2, 9, 4)),
    ],
)
def test_images_are_found_turned_and_resized(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], size: int, expected: tuple[int, ...]
) -> None:
    env, scripted = make(monkeypatch, size=size, observation_space=spaces.Box(0, 255, shape, np.uint8))
    assert env.spec.obs == {"image": ArraySpec(shape=expected, dtype="uint8")}
    image = env.reset(seed=0).obs["image"]
    assert (image.shape, image.dtype, image.flags["C_CONTIGUOUS"]) == (expected, np.uint8, True)
    for channel in range(expected[2]):
        raw = scripted.observation
        if raw.ndim == 3:
            # (C, h, w) or (h, w, C) -> (h, w)
            raw = raw[channel] if expected[2] == shape[0] and shape[2] > 4 else raw[..., channel]
        if raw.shape != expected[:2]:
            raw = np.array(Image.fromarray(raw).resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image[..., channel], raw)


def test_an_image_with_four_axes_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvError, match=r"uint8 with 4 axes, .* expected an image of at most 3"):
        make(monkeypatch, observation_space=spaces.Box(0, 255, (4, 84, 84, 3), np.uint8))


@pytest.mark.parametrize(
    ("space", "spec"),
    [
        (spaces.Box(-1, 1, (2, 3), np.float64), ArraySpec(shape=(6,), dtype="float32")),
        (spaces.Box(0, 255, (128,), np.uint8), ArraySpec(shape=(128,), dtype="float32")),
        (spaces.Box(-1, 1, (), np.float32), ArraySpec(shape=(1,), dtype="float32")),
        (spaces.MultiBinary((2, 2)), ArraySpec(shape=(4,), dtype="float32")),
        (spaces.Discrete(5), ArraySpec(shape=(), dtype="int64", classes=5)),
        (spaces.MultiDiscrete([2, 7, 4]), ArraySpec(shape=(3,), dtype="int64", classes=7)),
    ],
    ids=str,
)
def test_everything_else_is_a_vector_or_class_indices(
    monkeypatch: pytest.MonkeyPatch, space: spaces.Space, spec: ArraySpec
) -> None:
    env, scripted = make(monkeypatch, observation_space=space)
    assert env.spec.obs == {"vector": spec}
    vector = env.reset(seed=0).obs["vector"]
    assert (vector.shape, str(vector.dtype)) == (spec.shape, spec.dtype)
    np.testing.assert_array_equal(vector, np.asarray(scripted.observation).reshape(spec.shape).astype(spec.dtype))


def test_class_indices_count_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    env, scripted = make(monkeypatch, observation_space=spaces.Discrete(5, start=10))
    env.reset(seed=0)
    seen = {(int(env.step(one_hot(0, 3)).obs["vector"]), int(scripted.observation)) for _ in range(50)}
    assert seen == {(index, index + 10) for index in range(5)}


def test_dicts_are_flattened_with_slashes_and_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = spaces.Dict({"z": spaces.Box(-1, 1, (2,), np.float64), "a": spaces.Discrete(3)})
    space = spaces.Dict({"robot": inner, "camera": spaces.Box(0, 255, (20, 20, 3), np.uint8)})
    env, scripted = make(monkeypatch, observation_space=space)
    assert list(env.spec.obs) == ["camera", "robot/a", "robot/z"]
    obs = env.reset(seed=0).obs
    assert list(obs) == ["camera", "robot/a", "robot/z"]
    np.testing.assert_array_equal(obs["robot/z"], scripted.observation["robot"]["z"].astype(np.float32))
    np.testing.assert_array_equal(obs["camera"], scripted.observation["camera"])
    assert describe(env.spec) == [
        "camera (20, 20, 3) uint8 -> image encoder",
        "robot/a () int64, 3 classes -> one-hot -> vector encoder",
        "robot/z (2,) float32 -> vector encoder",
        "action (3,) discrete",
    ]


def test_two_observations_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    box = spaces.Box(-1, 1, (1,))
    space = spaces.Dict({"a/b": box, "a": spaces.Dict({"b": box})})
    with pytest.raises(EnvError, match="two observations would both be called 'a/b'"):
        make(monkeypatch, observation_space=space)


@pytest.mark.parametrize(
    "space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Text(4), spaces.Sequence(spaces.Discrete(2))], ids=str
)
def test_other_observations_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch, space: spaces.Space) -> None:
    with pytest.raises(EnvError, match=rf"observation 'inner' is a {type(space).__name__} space, expected Box"):
        make(monkeypatch, observation_space=spaces.Dict({"inner": space}))


def test_observations_are_the_callers_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    for space in (spaces.Box(-1, 1, (2,), np.float32), spaces.Box(0, 255, (8, 8, 3), np.uint8)):
        env, scripted = make(monkeypatch, observation_space=space)
        (obs,) = env.reset(seed=0).obs.values()
        kept = obs.copy()
        scripted.observation[:] = 0
        np.testing.assert_array_equal(obs, kept)


def test_an_unknown_id_is_a_sentence_with_close_matches() -> None:
    with pytest.raises(EnvError, match="unknown Gymnasium id 'CartPol-v1'; did you mean 'CartPole-v1'"):
        GymConfig(id="CartPol-v1").build()


def test_a_missing_package_is_a_sentence_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvError, match="not installed: No module named 'no_such_module'"):
        GymConfig(id="no_such_module:Env-v0").build()

    def needs_box2d() -> None:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    monkeypatch.setattr(sys.modules[__name__], "needs_box2d", needs_box2d, raising=False)
    with pytest.raises(EnvError, match="needs a package that is not installed: Box2D is not installed"):
        GymConfig(id=f"{__name__}:needs_box2d").build()


def test_wrong_arguments_are_a_sentence_that_repeats_them() -> None:
    with pytest.raises(EnvError, match=r"CartPole-v1 could not be made with gravity=3: TypeError: .*'gravity'"):
        GymConfig(id="CartPole-v1", kwargs=(("gravity", 3),)).build()


@pytest.mark.parametrize("wrong", [{"repeat": 0}, {"size": -1}, {"kwargs": ("g",)}])
def test_a_wrong_setting_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"GymConfig.{next(iter(wrong))} must"):
        GymConfig(**wrong)


def test_arguments_reach_the_environment_and_the_name() -> None:
    config = GymConfig(id="Pendulum-v1", kwargs=(("g", 3.0),))
    assert config.name == "gym/Pendulum-v1/g=3.0"
    assert config.build()._env.unwrapped.g == 3.0  # type: ignore[attr-defined]


def test_an_id_with_its_module_is_imported_and_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "someones_envs.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Mine-v0', entry_point=PendulumEnv, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = GymConfig(id="someones_envs:Mine-v0").build().spec
    assert (spec.name, spec.max_steps) == ("gym/Mine-v0", 7)
    assert GymConfig(id="someones_envs:PendulumEnv").build().spec.max_steps is None
    gymnasium.registry.pop("Mine-v0")


def test_atari_ids_find_their_package() -> None:
    env = GymConfig(id="ALE/Pong-v5").build()
    assert env.spec.obs == {"image": ArraySpec(shape=(64, 64, 3), dtype="uint8")}
    env.reset(seed=0)
    picture = env.render()
    assert picture is not None and (picture.shape, picture.dtype) == ((210, 160, 3), np.uint8)


def test_render_is_none_where_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    env, _ = make(monkeypatch)
    env.reset(seed=0)
    assert env.render() is None


def test_an_environment_that_cannot_draw_is_played_without_pictures_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise RuntimeError("no display")

    env, scripted = make(monkeypatch, render_mode="rgb_array")
    monkeypatch.setattr(scripted, "render", refuse)
    assert env.render() is None, "before the first reset there is nothing to draw"
    env.reset(seed=0)
    with caplog.at_level(logging.WARNING):
        assert env.render() is None and env.render() is None
    assert [record.getMessage() for record in caplog.records] == [
        "gym/scripted cannot draw here, so it has no videos: RuntimeError: no display"
    ]


def test_where_mujoco_could_not_draw_once_it_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a display its second try, in any environment, ends the process."""
    asked: list[str] = []

    class FatalError(Exception):
        pass

    def draw(which: str) -> None:
        asked.append(which)
        raise FatalError("an OpenGL platform library has not been loaded")

    monkeypatch.setattr(gym, "_failed_to_draw", set())
    monkeypatch.setattr(FatalError, "__module__", "mujoco")
    for which, module in (
        ("first", "envs.mujoco.arm"), ("second", "my_mujoco.task"), ("other", __name__), ("another", __name__)
    ):
        monkeypatch.setattr(Scripted, "__module__", module)
        env, scripted = make(monkeypatch, render_mode="rgb_array")
        monkeypatch.setattr(scripted, "render", lambda which=which: draw(which))
        env.reset(seed=0)
        assert env.render() is None
    # who draws by other means is asked
    assert asked == ["first", "other", "another"]


@pytest.mark.parametrize("env_id", CLASSIC)
@pytest.mark.parametrize("before", [0, 1, 37])
def test_a_copied_state_continues_bit_for_bit_in_a_fresh_env(env_id: str, before: int) -> None:
    config = GymConfig(id=env_id, kwargs=(("max_episode_steps", 60),))
    env, other = config.build(), config.build()
    assert isinstance(env, Clones) and isinstance(other, Clones)
    env.reset(seed=1)
    play(env, before, seed=2)
    state = env.get_state()
    # Plain data: what is neither an array nor bytes survives JSON.
    json.dumps(state, default=lambda value: [value.dtype.str, value.tolist()])
    expected = play(env, 200, seed=3)
    other.set_state(state)
    assert_equal(expected, play(other, 200, seed=3))
    env.set_state(state)
    assert_equal(expected, play(env, 200, seed=3))
    assert sum(step.is_first for step in expected) >= 2, "the copy goes through resets, random stream included"


def test_a_state_before_the_first_reset_still_asks_for_one() -> None:
    env, other = GymConfig().build(), GymConfig().build()
    assert isinstance(env, Clones) and isinstance(other, Clones)
    state = env.get_state()
    other.reset(seed=0)
    other.set_state(state)
    with pytest.raises(EnvError, match="call reset first"):
        other.step(one_hot(0, 2))


def test_a_state_of_another_environment_is_refused() -> None:
    env, other = GymConfig(id="CartPole-v1").build(), GymConfig(id="Acrobot-v1").build()
    assert isinstance(env, Clones) and isinstance(other, Clones)
    with pytest.raises(EnvError, match="belongs to 'gym/CartPole-v1', not to 'gym/Acrobot-v1'"):
        other.set_state(env.get_state())


def test_only_environments_we_know_whole_offer_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    from gymnasium.envs.classic_control import CartPoleEnv

    class Windy(CartPoleEnv):
        """A subclass may keep more than its base, so it is not copied."""

    assert not isinstance(make(monkeypatch)[0], Clones)
    assert not isinstance(GymConfig(id="FrozenLake-v1").build(), Clones)
    monkeypatch.setattr(sys.modules[__name__], "Windy", Windy, raising=False)
    assert not isinstance(GymConfig(id=f"{__name__}:Windy").build(), Clones)
    stacked = gymnasium.wrappers.NormalizeReward(gymnasium.make("CartPole-v1"))
    monkeypatch.setattr(sys.modules[__name__], "stacked", lambda: stacked, raising=False)
    assert not isinstance(GymConfig(id=f"{__name__}:stacked").build(), Clones)


def test_our_own_environments_copy_themselves_and_the_wrappers_are_copied_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ours(Scripted):
        __module__ = "worldmodel.envs.toys.made_up"
        ticks = 0

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.ticks += 1
            return np.full(2, self.ticks), 0.0, False, False, {}

        def get_state(self) -> dict[str, Any]:
            return {"ticks": self.ticks}

        def set_state(self, state: dict[str, Any]) -> None:
            self.ticks = state["ticks"]

    monkeypatch.setattr(sys.modules[__name__], "ours", lambda: gymnasium.wrappers.TimeLimit(Ours(), 4), raising=False)
    env, other = (GymConfig(id=f"{__name__}:ours").build() for _ in range(2))
    assert isinstance(env, Clones) and isinstance(other, Clones)
    env.reset(seed=0)
    for _ in range(3):
        env.step(one_hot(0, 3))
    other.reset(seed=0)
    other.set_state(env.get_state())
    step = other.step(one_hot(0, 3))
    assert (step.obs["vector"].tolist(), step.is_last, step.is_terminal) == ([4.0, 4.0], True, False)


def test_the_module_and_a_config_need_neither_torch_nor_gymnasium() -> None:
    code = (
        "import sys; from worldmodel.envs.gym import GymConfig; GymConfig(id='CartPole-v1'); "
        "print(sorted({'torch', 'gymnasium', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
