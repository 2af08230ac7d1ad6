"""Stacked images: the newest last, the first repeated, and a clone goes on with what was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldmodel.check.env import check_env
from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.pool import make_pool
from worldmodel.envs.stack import StackConfig
from worldmodel.envs.toys import ToyConfig
from worldmodel.errors import EnvError

GLIDE = StackConfig(env=ToyConfig(task="glide"), frames=3)


def test_the_newest_images_lie_behind_each_other_and_the_first_is_repeated() -> None:
    env, plain = GLIDE.build(), ToyConfig(task="glide").build()
    assert env.spec.obs["image"].shape == (32, 32, 9) and env.spec.name == "toy/glide/3frames"
    steps, seen = [env.reset(3)], [plain.reset(3).obs["image"]]
    for i in range(4):
        action = np.full(2, 0.3 * i, np.float32)
        steps.append(env.step(action))
        seen.append(plain.step(action).obs["image"])
    for t, step in enumerate(steps):
        newest = [seen[max(0, t - back)] for back in (2, 1, 0)]
        np.testing.assert_array_equal(step.obs["image"], np.concatenate(newest, -1))


def test_a_clone_goes_on_with_what_was_seen() -> None:
    env, twin = GLIDE.build(), GLIDE.build(1)
    env.reset(3)
    action = np.full(2, 0.5, np.float32)
    env.step(action)
    state = env.get_state()  # type: ignore[attr-defined]
    want = [env.step(action).obs["image"] for _ in range(4)]
    twin.reset(9)
    twin.set_state(state)  # type: ignore[attr-defined]
    np.testing.assert_array_equal([twin.step(action).obs["image"] for _ in range(4)], want)
    with pytest.raises(EnvError, match="no state of toy/glide"):
        twin.set_state({"env": state["env"]})  # type: ignore[attr-defined]


def test_it_keeps_every_promise_of_an_environment() -> None:
    report = check_env(GLIDE)
    assert not [f for f in report.findings if f.status == "fail"], report


def test_a_pool_of_them_resets_rows_by_themselves() -> None:
    pool = make_pool(GLIDE, 2, kind="serial")
    step = pool.reset(0)
    for _ in range(60):
        step = pool.step(torch.zeros(2, 2))
        if bool(step.is_first.any()):
            image = step.obs["image"][0]
            assert torch.equal(image[..., :3], image[..., 6:])
            break
    else:
        raise AssertionError("no episode ended")
    pool.close()


def test_without_images_there_is_nothing_to_stack() -> None:
    with pytest.raises(EnvError, match="no images to stack"):
        StackConfig(env=GymConfig(id="CartPole-v1")).build()
    with pytest.raises(ValueError, match="frames must be at least 1"):
        StackConfig(env=DMCConfig(), frames=0)
