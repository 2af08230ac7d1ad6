"""Futures that were simulated are those that come about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.dmc_simulation import REWARDS
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.toys import ToyConfig
from worldmodel.errors import UserError
from worldmodel.models.simulator import Simulated, Simulator
from worldmodel.planning.categorical import CategoricalCEM
from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.rng import Stream
from worldmodel.rollout import follow
from worldmodel.types import EnvSpec


def random_actions(spec: EnvSpec, rows: int, steps: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    if spec.action.kind == "discrete":
        return torch.eye(spec.action.size)[torch.randint(spec.action.size, (rows, steps), generator=g)]
    return torch.rand(rows, steps, spec.action.size, generator=g) * 2.4 - 1.2  # beyond the bounds too


def foreseen_and_lived(config: Any, rows: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rewards and ends of a random sequence in each of some environments, as simulated and as they came."""
    envs = [config.build(i) for i in range(rows)]
    model = Simulator(config)
    for i, env in enumerate(envs):
        env.reset(seed=i)
        for _ in range(i):  # they are at different places when they are captured
            env.step(np.zeros(env.spec.action.size, np.float32))
    action = random_actions(envs[0].spec, rows, steps)
    with torch.no_grad():
        dream = follow(model, model.capture(envs), action)
    lived = [[env.step(action[i, t].numpy()) for t in range(steps)] for i, env in enumerate(envs)]
    reward = np.array([[step.reward for step in row] for row in lived])
    goes_on = np.array([[not step.is_terminal for step in row] for row in lived])
    return dream.reward.numpy(), reward, dream.continues.numpy() > 0.5, goes_on


@pytest.mark.parametrize("config", [
    ToyConfig(task="catch"), ToyConfig(task="glide"), ToyConfig(task="recall", delay=2),
    ToyConfig(task="glide", distractor="moving"),
], ids=lambda c: c.name)
def test_toys_are_foreseen_exactly(config: ToyConfig) -> None:
    steps = {"catch": 53, "glide": 47, "recall": 2}[config.task]
    foreseen, lived, goes_on, truth = foreseen_and_lived(config, 3, steps)
    np.testing.assert_array_equal(foreseen, lived.astype(np.float32))
    np.testing.assert_array_equal(goes_on, truth)
    assert lived.any() or config.task == "recall"


@pytest.mark.parametrize("task", sorted(REWARDS))
def test_tasks_without_contacts_are_foreseen_to_rounding(task: str) -> None:
    foreseen, lived, goes_on, truth = foreseen_and_lived(DMCConfig(task=task, obs="proprio"), 2, 40)
    np.testing.assert_allclose(foreseen, lived, atol=2e-5)
    assert goes_on.all() and truth.all()


@pytest.mark.parametrize("task, steps, off", [
    ("acrobot_swingup", 40, 1e-5), ("swimmer_swimmer6", 10, 1e-5), ("point_mass_easy", 40, 1e-5),
    ("cheetah_run", 8, 1e-3), ("walker_walk", 8, 1e-3), ("finger_spin", 8, 1e-3), ("hopper_hop", 8, 1e-3),
])
def test_other_tasks_are_asked_for_their_rewards(task: str, steps: int, off: float) -> None:
    foreseen, lived, _, _ = foreseen_and_lived(DMCConfig(task=task, obs="proprio"), 2, steps)
    np.testing.assert_allclose(foreseen, lived, atol=off)


def test_closed_forms_are_the_rewards_of_the_suite_where_there_is_some() -> None:
    """At random states, among them those that a random policy never reaches."""
    for task in sorted(REWARDS):
        config = DMCConfig(task=task, obs="proprio", repeat=1)
        env = config.build()
        env.reset(seed=0)
        model = Simulator(config)
        state = model.simulation.capture([env])
        g = np.random.default_rng(0)
        physics = state["physics"].repeat(1000, 0)
        physics[:, 1:] += g.normal(0, 0.5, physics[:, 1:].shape) * g.choice([0.05, 1.0, 4.0], (1000, 1))
        near = model.simulation
        control = g.uniform(-1, 1, (1000, env.spec.action.size))
        rows = np.zeros(1000, int)
        mine = near._rewards(physics, control, rows)  # type: ignore[attr-defined]
        asked = [near._ask(0, x, u) for x, u in zip(physics, control)]  # type: ignore[attr-defined]
        np.testing.assert_allclose(mine, asked, atol=1e-9, err_msg=task)
        assert np.ptp(mine) > 0, task


def test_environments_with_targets_of_their_own_are_told_apart() -> None:
    config = DMCConfig(task="reacher_hard", obs="proprio")
    envs = [config.build(i) for i in range(2)]
    for i, env in enumerate(envs):
        env.reset(seed=i)
    model = Simulator(config)
    both = model.capture(envs)
    alone = [Simulator(config).capture([env]) for env in envs]
    assert torch.equal(both.fields["physics"], torch.cat([x.fields["physics"] for x in alone]))
    before = [env.get_state()["physics"].copy() for env in envs]
    after = model.step(both, torch.ones(2, 2))
    assert torch.equal(after.fields["env"], torch.tensor([0, 1]))
    for env, state in zip(envs, before):
        np.testing.assert_array_equal(env.get_state()["physics"], state)


def test_catch_is_played_perfectly_by_planning_in_the_truth() -> None:
    config = ToyConfig(task="catch")
    env, model = config.build(), Simulator(config)
    env.reset(seed=3)
    objective = ExpectedReturn(model=model, action=env.spec.action, discount=0.99)
    planner = CategoricalCEM(horizon=14, samples=64, elites=8, iterations=3)
    plan, first, total = planner.initial(1, 3), torch.ones(1, dtype=torch.bool), 0.0
    with Stream(seed=0), torch.no_grad():
        for _ in range(27):  # two balls
            plan, told = planner(objective, model.capture([env]), plan, first)
            total += env.step(plan.action[0].numpy()).reward
            first = torch.zeros(1, dtype=torch.bool)
    assert total == 2.0 and bool(told["value"].isfinite().all())


def test_what_cannot_be_simulated_is_a_sentence() -> None:
    with pytest.raises(UserError, match="GymConfig cannot be simulated; planning with the truth is for the toys"):
        Simulator(GymConfig(id="CartPole-v1"))
    model = Simulator(ToyConfig())
    assert isinstance(model.initial(2), Simulated) and model.feature_dim == model.features(model.initial(3)).shape[1]
    with pytest.raises(UserError, match="does not see observations; give it the environments"):
        model.observe(model.initial(1), {}, torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
