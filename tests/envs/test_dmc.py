"""The Control Suite: what an episode is, what is seen, and copies that go on bit for bit."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from worldmodel.envs import dmc
from worldmodel.envs.dmc import DMCConfig
from worldmodel.errors import EnvError
from worldmodel.specs import Clones


def _proprio(task: str, **settings: Any) -> dmc.DMCEnv:
    return DMCConfig(task=task, obs="proprio", **settings).build()


def _actions(env: dmc.DMCEnv, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, env.spec.action.size)).astype(np.float32)


def _equal(one: Any, other: Any) -> bool:
    flags = ("reward", "is_first", "is_last", "is_terminal")
    return all(getattr(one, name) == getattr(other, name) for name in flags) and all(
        np.array_equal(one.obs[key], other.obs[key]) for key in one.obs
    )


def test_names_say_what_the_agent_sees():
    assert DMCConfig().name == "dmc/walker_walk/gl"
    assert DMCConfig(task="cup_catch", render="ray").name == "dmc/ball_in_cup_catch/ray"
    assert DMCConfig(obs="proprio", render="gl-fast").name == "dmc/walker_walk/proprio"
    assert DMCConfig(obs="both", render="gl-fast").name == "dmc/walker_walk/gl-fast+proprio"


@pytest.mark.parametrize(
    "wrong", [{"obs": "vectors"}, {"render": "glfast"}, {"repeat": 0}, {"size": 2}, {"camera": -2}, {"max_frames": 0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DMCConfig(**wrong)


def test_an_unknown_task_gets_suggestions():
    with pytest.raises(EnvError, match="unknown task of the Control Suite 'walker_wlak'; did you mean 'walker_walk'"):
        _proprio("walker_wlak")


def test_underscores_in_domains_and_tasks_are_told_apart():
    known = dmc._by_name()
    assert known["ball_in_cup_catch"] == ("ball_in_cup", "catch")
    assert known["point_mass_easy"] == ("point_mass", "easy")
    assert known["humanoid_CMU_run"] == ("humanoid_CMU", "run")
    assert known["humanoid_run_pure_state"] == ("humanoid", "run_pure_state")
    assert known["manipulator_bring_ball"] == ("manipulator", "bring_ball")
    assert len(dmc.tasks()) == len(known) >= 45


def test_the_module_needs_neither_torch_nor_a_simulator_to_be_imported():
    code = (
        "import sys, worldmodel.envs.dmc as dmc, pickle; pickle.dumps(dmc.DMCConfig());"
        "print(sorted({'torch', 'mujoco', 'dm_control', 'OpenGL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout.decode().strip() == "[]"


def test_config_survives_pickling():
    config = DMCConfig(task="cheetah_run", repeat=4)
    assert pickle.loads(pickle.dumps(config)) == config


def test_vectors_are_flat_float32_and_sorted_by_key():
    env = _proprio("walker_walk")
    step = env.reset(seed=0)
    assert {key: spec.shape for key, spec in env.spec.obs.items()} == {
        "height": (1,),
        "orientations": (14,),
        "velocity": (9,),
    }
    assert list(env.spec.obs) == sorted(env.spec.obs) == list(step.obs)
    for key, spec in env.spec.obs.items():
        assert step.obs[key].dtype == np.float32 and step.obs[key].shape == spec.shape
    np.testing.assert_array_equal(step.obs["height"], np.float32(env._physics.torso_height()))


def test_both_kinds_of_observation_come_together():
    env = DMCConfig(task="cartpole_balance", obs="both", render="ray", size=16).build()
    step = env.reset(seed=0)
    assert sorted(step.obs) == ["image", "position", "velocity"]
    assert step.obs["image"].shape == (16, 16, 3) and step.obs["image"].dtype == np.uint8


def test_rewards_are_summed_over_the_repeated_frames_of_the_suite():
    env = _proprio("cheetah_run", repeat=3)
    theirs = dmc._load("cheetah_run")
    theirs.task.random.seed(11)
    theirs.reset()
    first = env.reset(seed=11)
    assert first.is_first and first.reward == 0.0
    for action in _actions(env, 10):
        step = env.step(action)
        theirs_steps = [theirs.step(action.astype(np.float64)) for _ in range(3)]
        assert step.reward == sum(float(each.reward) for each in theirs_steps)
        np.testing.assert_array_equal(step.obs["velocity"], np.float32(theirs_steps[-1].observation["velocity"]))


def test_actions_are_stretched_to_the_tasks_bounds_and_clipped():
    env = _proprio("quadruped_walk", repeat=1)
    bounds = env._env.action_spec()
    assert bounds.maximum.max() > 1.05  # otherwise this task tests nothing
    env.reset(seed=0)
    middle = (bounds.minimum + bounds.maximum) / 2
    for action, expected in ((1.0, bounds.maximum), (-5.0, bounds.minimum), (0.0, middle)):
        env.step(np.full(env.spec.action.size, action, np.float32))
        np.testing.assert_allclose(env._data.ctrl, expected, atol=1e-12)


def test_actions_without_bounds_pass_as_they_are():
    env = _proprio("lqr_lqr_2_1", repeat=1)
    env.reset(seed=0)
    assert not env.spec.action.is_bounded and _proprio("cartpole_swingup", repeat=1).spec.action.is_bounded
    env.step(np.array([3.5]))
    assert env._data.ctrl[0] == 3.5


@pytest.mark.parametrize(("repeat", "steps"), [(2, 500), (3, 334)])
def test_the_time_limit_truncates(repeat, steps):
    env = _proprio("cartpole_swingup", repeat=repeat)
    env.reset(seed=0)
    action = np.zeros(1, np.float32)
    for _ in range(steps - 1):
        assert not env.step(action).is_last
    last = env.step(action)
    assert env.spec.max_steps == steps and last.is_last and not last.is_terminal and env._frames == 1000


def test_an_earlier_limit_stops_inside_a_repeat():
    env = _proprio("lqr_lqr_2_1", repeat=2, max_frames=5)
    assert env.spec.max_steps == 3
    env.reset(seed=0)
    flags = [env.step(np.zeros(1)).is_last for _ in range(3)]
    assert flags == [False, False, True] and env._frames == 5
    assert env.reset().is_first and not env.step(np.zeros(1)).is_last


def test_discount_zero_is_terminal_and_stops_the_repeat(monkeypatch):
    env = _proprio("cartpole_balance", repeat=4)
    env.reset(seed=0)
    monkeypatch.setattr(env._task, "get_termination", lambda physics: 0.0 if env._env._step_count == 6 else None)
    assert not env.step(np.zeros(1)).is_last
    last = env.step(np.zeros(1))
    assert last.is_last and last.is_terminal and env._frames == 6


def test_wrong_calls_are_refused_with_a_sentence():
    env = _proprio("cartpole_balance", max_frames=2)
    with pytest.raises(EnvError, match="call reset first"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"shape \(1,\), got \(2,\)"):
        env.step(np.zeros(2))
    with pytest.raises(EnvError, match="not finite"):
        env.step(np.array([np.nan]))
    env.step(np.zeros(1))
    with pytest.raises(EnvError, match="call reset first"):
        env.step(np.zeros(1))


def test_diverged_physics_is_an_environment_error():
    env = _proprio("cartpole_balance")
    env.reset(seed=0)
    env._data.qpos[0] = np.nan
    with pytest.raises(EnvError, match="diverged"):
        env.step(np.zeros(1))
    assert np.isfinite(env.reset().obs["position"]).all()


def test_a_seed_decides_the_episode_and_none_goes_on_with_the_stream():
    one, other = _proprio("reacher_easy"), DMCConfig(task="reacher_easy", obs="proprio").build(3)
    starts = [one.reset(seed=5), one.reset(), one.reset(seed=5), one.reset()]
    assert _equal(starts[0], starts[2]) and _equal(starts[1], starts[3]) and not _equal(starts[0], starts[1])
    assert _equal(other.reset(seed=5), starts[0])
    fresh = [DMCConfig(task="reacher_easy", obs="proprio").build(index).reset() for index in (0, 1)]
    assert not _equal(*fresh)


def test_environments_of_a_pool_share_randomly_drawn_mechanics():
    one, other = (DMCConfig(task="lqr_lqr_6_2", obs="proprio").build(index) for index in (0, 1))
    np.testing.assert_array_equal(one._model.jnt_stiffness, other._model.jnt_stiffness)


CLONED = [
    "ball_in_cup_catch", "cartpole_swingup", "finger_turn_easy", "fish_swim", "hopper_hop", "humanoid_CMU_run",
    "manipulator_bring_ball", "point_mass_hard", "quadruped_escape", "reacher_easy", "stacker_stack_2",
    "swimmer_swimmer6", "walker_walk",
]  # fmt: skip


@pytest.mark.parametrize("task", CLONED)
def test_a_copy_goes_on_bit_for_bit_into_the_next_episode(task):
    one = _proprio(task, max_frames=40)
    other = DMCConfig(task=task, obs="proprio", max_frames=40).build(1)
    assert isinstance(one, Clones)
    one.reset(seed=2)
    other.reset(seed=3)
    actions = _actions(one, 30)
    for action in actions[:7]:
        one.step(action)
    other.step(actions[0])
    other.set_state(one.get_state())
    ended = False
    for action in actions[7:]:
        if ended:
            assert _equal(one.reset(), other.reset())
        mine, theirs = one.step(action), other.step(action)
        assert _equal(mine, theirs)
        ended = mine.is_last


def test_a_copy_draws_the_same_picture():
    config = DMCConfig(task="reacher_easy", render="ray", size=32)
    one, other = config.build(0), config.build(1)
    one.reset(seed=2)
    before = other.reset(seed=3).obs["image"]
    other.set_state(one.get_state())
    action = np.ones(2, np.float32)
    mine, theirs = one.step(action).obs["image"], other.step(action).obs["image"]
    np.testing.assert_array_equal(mine, theirs)
    assert np.abs(before.astype(int) - mine).mean() > 0.5  # the target of the other episode lay elsewhere


def test_states_are_plain_data_and_do_not_change_afterwards():
    env = _proprio("finger_turn_easy")
    env.reset(seed=0)
    state = env.get_state()
    arrays: list[np.ndarray] = []

    def strip(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays.append(value)
            return len(arrays)
        return {key: strip(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    json.dumps(strip(state))
    assert "site_pos" in state["model"]  # the target
    before = [array.copy() for array in arrays]
    for action in _actions(env, 5):
        env.step(action)
    env.reset()
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


def test_a_foreign_state_is_refused():
    walker, cartpole = _proprio("walker_walk"), _proprio("cartpole_balance")
    walker.reset(seed=0)
    with pytest.raises(EnvError, match="dmc/cartpole_balance/proprio cannot go on from a state of dmc/walker_walk"):
        cartpole.set_state(walker.get_state())


def test_state_vectors_can_be_watched_without_opengl(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    env = _proprio("pendulum_swingup")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8 and picture.std() > 10
    env.close()


def test_the_camera_can_be_chosen_and_must_exist():
    by_rule, first = (
        DMCConfig(task="quadruped_walk", render="ray", camera=camera, size=32).build() for camera in (-1, 0)
    )
    second = DMCConfig(task="quadruped_walk", render="ray", camera=2, size=32).build()
    images = [env.reset(seed=0).obs["image"] for env in (by_rule, first, second)]
    np.testing.assert_array_equal(images[0], images[2])
    assert np.abs(images[0].astype(int) - images[1]).mean() > 5
    with pytest.raises(EnvError, match="camera 9 does not exist"):
        DMCConfig(task="quadruped_walk", render="ray", camera=9).build()


def test_a_missing_dm_control_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control.suite", None)
    for cached in (dmc._suite, dmc._by_name, dmc.tasks):
        cached.cache_clear()
    with pytest.raises(EnvError, match=r"pip install 'dm-control>=1.0.28' 'mujoco>=3.3,<4'"):
        _proprio("walker_walk")


def test_a_mujoco_that_dm_control_does_not_know_is_refused(monkeypatch):
    monkeypatch.setattr("mujoco.__version__", "4.0.0")
    for cached in (dmc._suite, dmc._by_name, dmc.tasks):
        cached.cache_clear()
    with pytest.raises(EnvError, match=r"does not work with MuJoCo 4.0.0; run `pip install 'mujoco>=3.3,<4'`"):
        dmc.tasks()


@pytest.mark.slow
@pytest.mark.parametrize("obs", ["pixels", "proprio"])
def test_every_task_of_the_suite_runs_without_opengl(obs):
    for task in dmc.tasks():
        env = DMCConfig(task=task, obs=obs, render="ray").build()
        env.reset(seed=0)
        for action in _actions(env, 3):
            step = env.step(action)
        assert env.spec.max_steps == 500, task
        for key, spec in env.spec.obs.items():
            assert step.obs[key].shape == spec.shape and step.obs[key].dtype == spec.dtype, (task, key)
        assert obs == "proprio" or step.obs["image"].std() > 5, task
        env.close()
