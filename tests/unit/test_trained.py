"""A trained agent in three lines: loaded, checked, and acting in a loop of the user's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import worldmodel
import worldmodel.envs.toys  # registers the toys with Gymnasium
from tests.unit.tiny import tiny_run, train
from worldmodel import runs
from worldmodel.envs.pool import make_pool
from worldmodel.errors import CheckpointError, EnvError, UserError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("catch") / "run", tiny_run())


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("pendulum") / "run", tiny_run("gym", env="Pendulum-v1", size="nano"))


def test_three_lines_act_as_an_evaluation_does(run_dir: Path) -> None:
    agent = worldmodel.load(str(run_dir))
    pool = make_pool(agent.run.env, 1)
    carry, step = agent.initial(1, seed=5), pool.reset(5)
    total = 0.0
    while not step.is_last.any():
        action, carry = agent.act(carry, step)
        step = pool.step(action)
        total += float(step.reward)
    pool.close()
    assert runs.evaluate(run_dir, episodes=1, seed=5, device="cpu")[0].returns == [total]


def test_acting_takes_the_mode_unless_told_to_explore(run_dir: Path) -> None:
    agent = worldmodel.load(run_dir, device="cpu")
    pool = make_pool(agent.run.env, 1)
    step = pool.reset(0)
    pool.close()
    actions = {
        explore: {int(agent.act(agent.initial(1, seed=seed), step, explore=explore)[0].argmax()) for seed in range(40)}
        for explore in (False, True)
    }
    assert len(actions[True]) == 3, "an agent of a few updates tries everything"
    assert len(actions[False]) < 3
    assert torch.equal(
        agent.act(agent.initial(1), step)[0], agent.agent.act(agent.initial(1), step, explore=False)[0]
    )


def test_one_checkpoint_can_be_named(run_dir: Path) -> None:
    folders = sorted((run_dir / "checkpoints").iterdir())
    assert [worldmodel.load(folder).checkpoint.step for folder in folders] == [8, 16]
    assert worldmodel.load(run_dir).checkpoint.step == 16


def test_a_damaged_checkpoint_is_passed_over_or_refused_by_name(run_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    newest = copy / "checkpoints" / "000000000016"
    weights = newest / "agent_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    said: list[str] = []
    assert worldmodel.load(copy, say=said.append).checkpoint.step == 8
    assert len(said) == 1 and "agent_model.safetensors" in said[0]
    with pytest.raises(CheckpointError, match="does not match the digest"):
        worldmodel.load(newest)


def test_a_checkpoint_of_another_run_is_refused(run_dir: Path, pendulum: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    foreign = shutil.copytree(pendulum / "checkpoints" / "000000000016", copy / "checkpoints" / "000000000099")
    with pytest.raises(CheckpointError, match="is of another run"):
        worldmodel.load(foreign)
    with pytest.raises(UserError, match="is not a run folder"):
        worldmodel.load(tmp_path)


def test_a_plain_gymnasium_loop_sees_and_does_what_the_adapter_does(pendulum: Path) -> None:
    agent = worldmodel.load(pendulum)
    env, adapter = gymnasium.make("Pendulum-v1"), agent.run.env.build(0)
    link = agent.connect(env)
    obs, _ = env.reset(seed=3)
    carry, step, theirs = agent.initial(), link.step(obs, is_first=True), adapter.reset(3)
    for _ in range(5):
        assert step.obs["vector"][0].tolist() == theirs.obs["vector"].tolist()
        assert step.reward.tolist() == [np.float32(theirs.reward)]
        assert (bool(step.is_first), bool(step.is_last)) == (theirs.is_first, theirs.is_last)
        action, carry = agent.act(carry, step)
        obs, reward, terminated, truncated, _ = env.step(link.action(action))
        step, theirs = link.step(obs, float(reward), terminated, truncated), adapter.step(action[0].numpy())
    env.close()
    adapter.close()


def test_observations_and_actions_are_converted_as_in_training(pendulum: Path, run_dir: Path) -> None:
    agent = worldmodel.load(pendulum)
    env = gymnasium.make("Pendulum-v1")
    link = agent.connect(env)
    step = link.step(np.array([1, 0, 0.5]), -2.0, truncated=True)
    assert step.obs["vector"].dtype == torch.float32 and step.obs["vector"].tolist() == [[1.0, 0.0, 0.5]]
    assert step.reward.tolist() == [-2.0] and step.is_last.tolist() == [True]
    assert step.is_terminal.tolist() == [False] and step.is_first.tolist() == [False]
    assert link.step(np.zeros(3), terminated=True).is_terminal.tolist() == [True]
    # torque is in [-2, 2]
    assert link.action(torch.tensor([[0.5]])).tolist() == [1.0]
    catch = gymnasium.make("worldmodel/Catch-v0")
    images = worldmodel.load(run_dir).connect(catch)
    frame, _ = catch.reset(seed=0)
    assert torch.equal(images.step(frame, is_first=True).obs["image"][0], torch.from_numpy(frame))
    assert images.action(torch.tensor([[0.0, 0.0, 1.0]])) == 2


def test_an_environment_with_other_spaces_is_refused(run_dir: Path) -> None:
    with pytest.raises(EnvError, match=r"does not fit: the agent was trained on toy.*offers vector \(4,\) float32"):
        worldmodel.load(run_dir).connect(gymnasium.make("CartPole-v1"))


def test_importing_worldmodel_takes_neither_torch_nor_gymnasium() -> None:
    code = (
        "import sys, worldmodel; assert 'load' in dir(worldmodel); "
        "assert not {'torch', 'gymnasium', 'numpy'} & set(sys.modules); "
        "assert not hasattr(worldmodel, 'lod')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
