"""Atari: protocols, pixels, flags, lives and exact copies, on the real emulator."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.envs.atari import PROTOCOLS, RANDOM_AND_HUMAN, Atari, AtariConfig, games
from worldmodel.errors import EnvError
from worldmodel.specs import Clones, EnvStep

ale_py = pytest.importorskip("ale_py")


def press(env: Atari, button: int | str) -> np.ndarray:
    index = env.actions.index(button) if isinstance(button, str) else button
    return np.eye(env.spec.action.size, dtype=np.float32)[index]


def play(env: Atari, steps: int, seed: int, until_last: bool = False) -> list[EnvStep]:
    """Random buttons; episodes that end are reset without a seed."""
    rng = np.random.default_rng(seed)
    lived = []
    for _ in range(steps):
        lived.append(env.step(press(env, int(rng.integers(env.spec.action.size)))))
        if lived[-1].is_last:
            if until_last:
                break
            lived.append(env.reset())
    return lived


def assert_equal(a: list[EnvStep], b: list[EnvStep]) -> None:
    assert len(a) == len(b)
    for t, (x, y) in enumerate(zip(a, b)):
        assert (x.reward, x.is_first, x.is_last, x.is_terminal) == (y.reward, y.is_first, y.is_last, y.is_terminal), t
        np.testing.assert_array_equal(x.obs["image"], y.obs["image"], err_msg=f"step {t}")


class Reference:
    """The protocol written out plainly, on a second emulator that starts from a copy of the first."""

    def __init__(self, env: Atari, config: AtariConfig) -> None:
        state = env.get_state()
        self.config, self.ale = config, ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", config.sticky)
        self.ale.loadROM(str(Path(ale_py.__file__).parent / "roms" / f"{config.task}.bin"))
        self.ale.restoreState(ale_py.ALEState(state["ale"]))
        self.codes = {"minimal": self.ale.getMinimalActionSet(), "full": self.ale.getLegalActionSet()}[config.actions]

    def step(self, button: int) -> tuple[np.ndarray, float, bool]:
        frames, reward = [], 0.0
        for _ in range(self.config.repeat):
            reward += self.ale.act(self.codes[button])
            frames.append(self.ale.getScreenRGB())
            if self.ale.game_over():
                break
        cut = len(frames) < self.config.repeat
        image = Image.fromarray(frames[-1] if cut else np.maximum(frames[-2], frames[-1]))
        image = np.array(image.resize((self.config.size, self.config.size), Image.Resampling.BILINEAR))
        if self.config.color == "gray":
            image = (image * np.array([0.299, 0.587, 1 - (0.299 + 0.587)])).sum(-1, keepdims=True).astype(np.uint8)
        return image, reward, self.ale.game_over()


def test_the_constructors_are_the_published_protocols() -> None:
    common = {"repeat": 4, "noops": 30, "lives": "unused", "max_frames": 108_000}
    assert PROTOCOLS["100k"] == common | {"size": 64, "color": "rgb", "sticky": 0.0, "actions": "minimal"}
    assert PROTOCOLS["200m"] == common | {"size": 96, "color": "gray", "sticky": 0.25, "actions": "full"}
    for config in (AtariConfig.atari100k("pong"), AtariConfig.atari200m("pong")):
        assert {key: getattr(config, key) for key in PROTOCOLS[config.protocol]} == PROTOCOLS[config.protocol]
    assert AtariConfig(task="pong") == AtariConfig.atari100k("pong")


def test_the_name_lists_every_departure_from_the_protocol() -> None:
    assert AtariConfig.atari200m("Pong").name == "atari/pong/200m"
    assert AtariConfig.atari100k("boxing", noops=0, actions="full").name == "atari/boxing/100k/actions=full,noops=0"
    assert AtariConfig(task="pong", sticky=0.25).name == "atari/pong/100k/sticky=0.25"


@pytest.mark.parametrize("spelling", ["road_runner", "RoadRunner", "Road Runner", "ROAD_RUNNER"])
def test_any_spelling_names_the_same_game(spelling: str) -> None:
    assert AtariConfig(task=spelling).name == "atari/road_runner/100k"


def test_an_unknown_game_is_a_sentence_with_the_closest_names() -> None:
    with pytest.raises(EnvError, match="unknown Atari game 'boxng'; did you mean 'boxing'"):
        AtariConfig(task="boxng")


@pytest.mark.parametrize(
    "wrong", [{"sticky": 1.5}, {"repeat": 0}, {"size": 2}, {"color": "grey"}, {"lives": "discount"}]
)
def test_a_wrong_setting_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"AtariConfig.{next(iter(wrong))} must be"):
        AtariConfig(task="pong", **wrong)


def test_listed_games_are_those_the_emulator_knows() -> None:
    roms = (Path(ale_py.__file__).parent / "roms").glob("*.bin")
    assert games() == sorted(rom.stem for rom in roms if ale_py.ALEInterface.isSupportedROM(str(rom)))
    assert set(RANDOM_AND_HUMAN) <= set(games())
    assert len(RANDOM_AND_HUMAN) == 26


def test_the_spec_tells_shape_actions_and_reference_returns() -> None:
    spec = AtariConfig.atari100k("breakout").build().spec
    assert spec.obs["image"].is_image and spec.obs["image"].shape == (64, 64, 3)
    assert (spec.action.kind, spec.action.size, spec.repeat, spec.max_steps) == ("discrete", 4, 4, 27_000)
    assert spec.reference == {"random": 1.7, "human": 30.5}
    spec = AtariConfig.atari200m("space_invaders").build().spec
    assert (spec.obs["image"].shape, spec.action.size, spec.reference) == ((96, 96, 1), 18, {})


@pytest.mark.parametrize("config", [AtariConfig.atari100k("breakout"), AtariConfig.atari200m("breakout")])
def test_pixels_rewards_and_ends_equal_the_protocol_written_out_plainly(config: AtariConfig) -> None:
    env = config.build()
    env.reset(seed=3)
    reference = Reference(env, config)
    rng = np.random.default_rng(0)
    for _ in range(800):
        button = int(rng.integers(env.spec.action.size))
        step = env.step(press(env, button))
        image, reward, is_terminal = reference.step(button)
        np.testing.assert_array_equal(step.obs["image"], image)
        assert (step.reward, step.is_terminal, step.is_last, step.is_first) == (reward, is_terminal, is_terminal, False)
        assert step.obs["image"].shape == env.spec.obs["image"].shape
        if step.is_last:
            break
    assert step.is_terminal, "random play loses Breakout within 800 decisions"


def test_reset_shows_nothing_of_the_previous_episode() -> None:
    env = AtariConfig.atari100k("boxing", noops=0).build()
    first = env.reset(seed=0)
    play(env, 20, seed=1)
    np.testing.assert_array_equal(env.reset(seed=0).obs["image"], first.obs["image"])
    assert first.obs["image"].any(), "not a black picture"
    assert (first.is_first, first.is_last, first.reward) == (True, False, 0.0)


def test_no_ops_are_drawn_anew_each_episode_and_repeat_with_the_seed() -> None:
    env = AtariConfig.atari100k("boxing").build()

    def frames() -> int:
        return ale_py.ALEState(env.get_state()["ale"]).getEpisodeFrameNumber()

    def lengths(seed: int) -> list[int]:
        env.reset(seed=seed)
        drawn = [frames()]
        for _ in range(19):
            env.reset()
            drawn.append(frames())
        return drawn

    assert lengths(0) == lengths(0)
    assert lengths(0) != lengths(1)
    assert min(lengths(0)) >= 0 and max(lengths(0)) <= 30 and len(set(lengths(0))) > 5


def test_the_frame_cap_truncates_and_is_not_terminal() -> None:
    env = AtariConfig.atari100k("boxing", max_frames=10).build()
    assert env.spec.max_steps == 3
    env.reset(seed=0)
    steps = [env.step(press(env, "NOOP")) for _ in range(3)]
    assert [step.is_last for step in steps] == [False, False, True]
    assert not any(step.is_terminal for step in steps)
    with pytest.raises(EnvError, match="call reset first"):
        env.step(press(env, "NOOP"))
    assert env.reset().is_first
    assert not env.step(press(env, "NOOP")).is_last, "the cap counts anew"


def test_step_before_reset_and_a_wrong_action_are_sentences() -> None:
    env = AtariConfig.atari100k("pong").build()
    with pytest.raises(EnvError, match="before reset"):
        env.step(press(env, 0))
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"one-hot of shape \(6,\), got \(18,\)"):
        env.step(np.zeros(18, np.float32))


def test_a_lost_life_ends_the_episode_and_the_game_goes_on() -> None:
    env = AtariConfig.atari100k("breakout", lives="reset", noops=0).build()
    env.reset(seed=0)
    lives = []
    for _ in range(5):
        last = play(env, 2000, seed=len(lives), until_last=True)[-1]
        assert last.is_last and last.is_terminal
        lives.append(env._ale.lives())
        frame = ale_py.ALEState(env.get_state()["ale"]).getEpisodeFrameNumber()
        env.reset()
        after = ale_py.ALEState(env.get_state()["ale"]).getEpisodeFrameNumber()
        assert after == (frame if lives[-1] else 0), "only a finished game starts anew"
    assert lives == [4, 3, 2, 1, 0]


def test_a_seeded_reset_after_a_lost_life_is_a_new_game() -> None:
    env = AtariConfig.atari100k("breakout", lives="reset", noops=0).build()
    first = env.reset(seed=0)
    play(env, 2000, seed=0, until_last=True)
    np.testing.assert_array_equal(env.reset(seed=0).obs["image"], first.obs["image"])
    assert env.get_state()["lives"] == 5


def test_unused_lives_do_not_end_the_episode() -> None:
    env = AtariConfig.atari100k("breakout", noops=0).build()
    env.reset(seed=0)
    assert env._ale.lives() == 5
    assert play(env, 2000, seed=0, until_last=True)[-1].is_terminal
    assert env._ale.lives() == 0


@pytest.mark.parametrize("config", [AtariConfig.atari200m("pong"), AtariConfig.atari100k("ms_pacman", sticky=0.25)])
def test_the_same_seed_gives_the_same_game_with_sticky_actions(config: AtariConfig) -> None:
    a, b, c = config.build(), config.build(), config.build()
    first = [a.reset(seed=5)], [b.reset(seed=5)], [c.reset(seed=6)]
    lived = [start + play(env, 60, seed=0) for start, env in zip(first, (a, b, c))]
    assert_equal(lived[0], lived[1])
    assert any((x.obs["image"] != y.obs["image"]).any() for x, y in zip(lived[0], lived[2]))


@pytest.mark.parametrize(
    "config",
    [
        AtariConfig.atari200m("pong"),
        AtariConfig.atari200m("breakout", lives="reset"),
        AtariConfig.atari100k("road_runner", repeat=1),
    ],
    ids=lambda config: config.name,
)
@pytest.mark.parametrize("before", [0, 17, 150])
def test_a_copied_state_continues_bit_for_bit_in_a_fresh_env(config: AtariConfig, before: int) -> None:
    env = config.build()
    env.reset(seed=1)
    play(env, before, seed=2)
    state = pickle.loads(pickle.dumps(env.get_state()))
    other = config.build()
    other.reset(seed=99)
    play(other, 5, seed=7)
    assert isinstance(other, Clones)
    other.set_state(state)
    np.testing.assert_array_equal(other.render(), env.render())
    assert_equal(play(env, 250, seed=3), play(other, 250, seed=3))


def test_a_state_taken_at_the_end_of_an_episode_still_asks_for_a_reset() -> None:
    config = AtariConfig.atari100k("boxing", max_frames=8)
    env, other = config.build(), config.build()
    env.reset(seed=0)
    play(env, 2, seed=0, until_last=True)
    other.set_state(env.get_state())
    with pytest.raises(EnvError, match="call reset first"):
        other.step(press(other, 0))
    assert_equal([env.reset(), *play(env, 1, 0)], [other.reset(), *play(other, 1, 0)])


def test_a_state_is_plain_data_and_is_refused_by_another_game() -> None:
    env = AtariConfig.atari100k("pong").build()
    env.reset(seed=0)
    state = env.get_state()
    json.dumps({key: value for key, value in state.items() if not isinstance(value, (bytes, np.ndarray))})
    with pytest.raises(EnvError, match="belongs to 'atari/pong/100k', not to 'atari/boxing/100k'"):
        AtariConfig.atari100k("boxing").build().set_state(state)


def test_observations_and_renders_are_the_callers_to_keep() -> None:
    env = AtariConfig.atari100k("boxing").build()
    step, picture = env.reset(seed=0), env.render()
    assert picture is not None and picture.shape == (210, 160, 3) and picture.dtype == np.uint8
    kept, seen = step.obs["image"].copy(), picture.copy()
    play(env, 10, seed=0)
    np.testing.assert_array_equal(step.obs["image"], kept)
    np.testing.assert_array_equal(picture, seen)


def test_the_module_and_a_config_need_neither_torch_nor_the_emulator() -> None:
    code = (
        "import sys; from worldmodel.envs.atari import AtariConfig; print(AtariConfig(task='Pong').name); "
        "print(sorted({'torch', 'ale_py', 'gymnasium', 'PIL'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["atari/pong/100k", "[]"]


def test_building_and_playing_prints_nothing() -> None:
    code = (
        "import numpy as np; from worldmodel.envs.atari import AtariConfig; env = AtariConfig(task='pong').build(); "
        "env.reset(seed=0); env.step(np.eye(6, dtype=np.float32)[0]); env.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
