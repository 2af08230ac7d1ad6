"""Who led where: from an environment through pool and replay to the batch that is learned from, against a log written
beside it by separate environments that lived the same lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch

from worldmodel.envs.pool import make_pool
from worldmodel.envs.seeds import env_seed
from worldmodel.envs.toys import ToyConfig
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import make_replay

ENVS, STEPS, LENGTH, SEED = 3, 240, 9, 5


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of a life: what led here (nothing in the first), what was found, and what was chosen then."""

    led_here: np.ndarray
    image: np.ndarray
    reward: float
    first: bool
    last: bool
    terminal: bool
    chosen: np.ndarray


def single_life(config: ToyConfig, row: int, choices: np.ndarray) -> list[Event]:
    """Live alone in one environment; ``choices`` (STEPS, A), of which those at an end go nowhere."""
    env = config.build(row)
    step, nothing = env.reset(env_seed(SEED, row)), np.zeros_like(choices[0])
    led_here, log = nothing, []
    for choice in choices:
        chosen = nothing if step.is_last else choice
        log.append(
            Event(
                led_here=led_here, image=step.obs["image"].copy(), reward=float(step.reward), first=step.is_first,
                last=step.is_last, terminal=step.is_terminal, chosen=chosen,
            )
        )
        led_here = chosen
        step = env.reset(None) if step.is_last else env.step(choice)
    env.close()
    return log


def choices_of(config: ToyConfig) -> np.ndarray:
    """(STEPS, ENVS, A)"""
    rng, action = np.random.default_rng(1), config.build(0).spec.action
    if action.kind == "discrete":
        return np.eye(action.size, dtype=np.float32)[rng.integers(action.size, size=(STEPS, ENVS))]
    return rng.uniform(-1, 1, (STEPS, ENVS, action.size)).astype(np.float32)


@pytest.mark.parametrize("kind", ["batched", "serial", "process"])
@pytest.mark.parametrize("task", ["catch", "glide", "recall"])
def test_what_is_sampled_is_what_was_lived(
    task: Literal["catch", "glide", "recall"], kind: Literal["batched", "serial", "process"]
) -> None:
    config = ToyConfig(task=task)
    choices = choices_of(config)
    pool = make_pool(config, ENVS, kind=kind)
    numbers: dict[str, Any] = {"capacity": ENVS * STEPS, "batch_size": 16, "length": LENGTH, "online_fraction": 0.0}
    replay = make_replay(ReplayConfig(**numbers), pool.spec, {}, ENVS, device=torch.device("cpu"), seed=0)
    step = pool.reset(SEED)
    for choice in torch.from_numpy(choices):
        replay.add(step, choice, {})
        step = pool.step(choice)
    pool.close()
    lives = [single_life(config, row, choices[:, row]) for row in range(ENVS)]
    assert all(sum(event.first for event in life) >= 2 for life in lives), "sequences cross episodes"

    rewards = firsts = 0.0
    for _ in range(12):
        batch = replay.sample()
        assert batch.index is not None
        for b, (row, start) in enumerate(batch.index.tolist()):
            for t in range(LENGTH):
                event = lives[row][start + t]
                assert np.array_equal(batch.obs["image"][b, t].numpy(), event.image)
                assert batch.reward[b, t].item() == pytest.approx(event.reward, abs=1e-6), "on arriving at obs[t]"
                assert batch.prev_action[b, t].tolist() == event.led_here.tolist(), "led to obs[t]"
                assert batch.action[b, t].tolist() == event.chosen.tolist(), "chosen after obs[t]"
                flags = [getattr(batch, name)[b, t].item() for name in ("is_first", "is_last", "is_terminal")]
                assert flags == [event.first, event.last, event.terminal]
                rewards, firsts = rewards + abs(event.reward), firsts + event.first
    assert rewards > 0 and firsts > 0, "something to misalign was among the samples"


def test_a_ball_is_rewarded_in_the_picture_in_which_it_arrives() -> None:
    """Catch pays when the ball touches the paddle: seen from outside of the game, in pixels."""
    config = ToyConfig(task="catch")
    env = config.build(0)
    step, pictures, rewards = env.reset(3), [], []
    while not step.is_last:
        pictures.append(step.obs["image"])
        rewards.append(step.reward)
        step = env.step(np.eye(3, dtype=np.float32)[1])
    pictures.append(step.obs["image"])
    rewards.append(step.reward)
    env.close()
    ball = np.array([255, 214, 64])
    lowest = []
    for picture in pictures:
        yellow = (np.abs(picture.astype(int) - ball).max(-1) < 40).any(1)
        lowest.append(int(np.flatnonzero(yellow).max()))
    paid = [t for t, reward in enumerate(rewards) if reward]
    arrivals = [t for t in range(len(lowest)) if t + 1 == len(lowest) or lowest[t + 1] < lowest[t]]
    assert len(arrivals) == 4 and paid and set(paid) <= set(arrivals)
