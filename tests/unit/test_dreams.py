"""A learned model as a Gymnasium environment: what it offers is what the model says, and a seed decides it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import worldmodel
from tests.unit.tiny import tiny_run, train
from worldmodel.agents.random.agent import RandomConfig
from worldmodel.config import Run
from worldmodel.errors import UserError
from worldmodel.rng import Stream
from worldmodel.types import Prediction

DREAM = "worldmodel.dreams:worldmodel/Dream-v0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {
        "discrete": train(root / "catch", tiny_run()),
        "continuous": train(root / "glide", tiny_run(task="glide", objective="barlow")),
        "vector": train(root / "pendulum", tiny_run("gym", env="Pendulum-v1", size="nano")),
    }


def rollout(env: gymnasium.Env[Any, Any], seed: int | None, steps: int = 12) -> list[Any]:
    env.action_space.seed(0)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        seen += [obs, reward, terminated, truncated, info["continues"]]
        if terminated or truncated:
            seen.append(env.reset()[0])
    return seen


def same(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(np.array_equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize("starts", ["reset", "replay"])
@pytest.mark.parametrize(
    ("kind", "observation"),
    [("discrete", "image"), ("continuous", "image"), ("continuous", "features"), ("vector", "features")],
)
def test_gymnasiums_checker_is_content(folders: dict[str, Path], kind: str, observation: Any, starts: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = worldmodel.dream_env(folders[kind], observation=observation, starts=starts, device="cpu")
        check_env(env)
    assert isinstance(env.action_space, gymnasium.spaces.Discrete) == (kind == "discrete")
    env.close()


@pytest.mark.parametrize("starts", ["reset", "replay"])
def test_the_seed_decides_everything(folders: dict[str, Path], starts: Any) -> None:
    env = worldmodel.dream_env(folders["discrete"], starts=starts, horizon=5)
    other = worldmodel.dream_env(folders["discrete"], starts=starts, horizon=5)
    once = rollout(env, seed=3)
    torch.rand(7)  # whatever else draws numbers
    assert same(once, rollout(other, seed=3))
    assert not same(once, rollout(other, seed=4))
    assert not same(rollout(env, seed=None), once), "without a seed the stream goes on"


def test_a_dream_is_what_the_model_says(folders: dict[str, Path]) -> None:
    trained = worldmodel.load(folders["continuous"], device="cpu")
    env = worldmodel.dream_env(folders["continuous"], device="cpu", ending="threshold")
    features = worldmodel.dream_env(folders["continuous"], device="cpu", ending="threshold", observation="features")
    image, _ = env.reset(seed=1)
    first, _ = features.reset(seed=1)
    # by hand, with the same noise
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(1)))
    stream = Stream(seed=int(rng.integers(2**62)))
    real = trained.run.env.build(0)
    frame = real.reset(int(rng.integers(2**31, size=1)[0])).obs["image"]
    model: Any = trained.agent.model  # type: ignore[attr-defined]
    with torch.no_grad(), stream:
        seen = model.observe(
            model.initial(1), {"image": torch.from_numpy(frame)[None, None]}, torch.zeros(1, 1, 2),
            torch.ones(1, 1, dtype=torch.bool),
        )
        state = type(seen)(deter=seen.deter[:, 0], stoch=seen.stoch[:, 0])
        assert first.tolist() == model.features(state)[0].tolist()
        decoded = model.decode(state)["image"][0].numpy()
        assert image.tolist() == np.floor(decoded * 255 + 0.5).astype(np.uint8).tolist()
        action = torch.tensor([[0.25, -1.0]])
        after = model.step(state, action)
        said = model.predict(state, action, after)
    obs, reward, terminated, truncated, info = features.step(np.array([0.25, -1.0], np.float32))
    assert obs.tolist() == model.features(after)[0].tolist()
    assert reward == pytest.approx(float(said.reward)) and not terminated and not truncated
    assert info["continues"] == pytest.approx(min(1.0, float(said.continues)))


class Ending:
    """A model that says how sure it is that a dream goes on, and is the real one otherwise."""

    def __init__(self, model: Any, continues: float) -> None:
        self.inner, self.continues = model, continues

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def predict(self, previous: Any, action: torch.Tensor, state: Any) -> Prediction:
        ones = torch.ones(action.shape[0])
        return Prediction(reward=2 * ones, continues=self.continues * ones)


def lengths(env: Any, continues: float, count: int) -> list[int]:
    """Steps of ``count`` dreams that terminated."""
    env._dream.model = Ending(env._dream.model, continues)
    out, age = [], 0
    env.reset(seed=0)
    while len(out) < count:
        age += 1
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            out.append(age if terminated else -age)
            age = 0
            env.reset()
    return out


def test_dreams_end_by_chance_by_threshold_or_by_the_horizon(folders: dict[str, Path]) -> None:
    def make(**options: Any) -> Any:
        return worldmodel.dream_env(folders["vector"], observation="features", starts="replay", device="cpu", **options)

    assert lengths(make(ending="threshold", horizon=4), 0.51, 3) == [-4, -4, -4]
    assert lengths(make(ending="threshold", horizon=4), 0.5, 3) == [1, 1, 1]
    assert lengths(make(horizon=4), 1.0, 3) == [-4, -4, -4]
    assert lengths(make(horizon=4), 0.0, 3) == [1, 1, 1]
    # geometric with mean 2: 200 dreams are within five standard errors (sqrt 2 / sqrt 200 = 0.1)
    assert 1.5 < np.mean(lengths(make(horizon=10_000), 0.5, 200)) < 2.5


def test_dreams_in_a_batch_begin_anew_one_by_one(folders: dict[str, Path]) -> None:
    envs = worldmodel.dream_envs(folders["discrete"], 3, horizon=4, ending="threshold", device="cpu")
    envs._dream.model = Ending(envs._dream.model, 1.0)  # type: ignore[assignment]
    assert envs.observation_space.shape == (3, 32, 32, 3) and envs.action_space.shape == (3,)
    obs, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(obs) and len({x.tobytes() for x in obs}) == 3
    over = []
    for _ in range(11):
        obs, reward, terminated, truncated, info = envs.step(np.array([0, 1, 2]))
        assert obs.shape == (3, 32, 32, 3) and info["continues"].shape == (3,)
        over.append((terminated | truncated).tolist())
        if len(over) > 1 and over[-2] == [True] * 3:
            assert reward.tolist() == [0, 0, 0] and over[-1] == [False] * 3
    # four steps, one that begins anew, four steps
    assert [i for i, x in enumerate(over) if any(x)] == [3, 8]
    # only one row is over: the others dream on
    envs.reset(seed=0)
    envs._over[1] = True
    before = envs._dream.age.tolist()
    _, reward, *_ = envs.step(np.array([0, 1, 2]))
    assert envs._dream.age.tolist() == [before[0] + 1, 0, before[2] + 1] and reward[1] == 0
    envs.close()


def test_a_batch_is_decided_by_its_seed(folders: dict[str, Path]) -> None:
    def run(seed: int) -> list[np.ndarray]:
        envs = worldmodel.dream_envs(folders["continuous"], 2, horizon=3, observation="features", device="cpu")
        envs.action_space.seed(0)
        seen = [envs.reset(seed=seed)[0]]
        seen += [x for _ in range(6) for x in envs.step(envs.action_space.sample())[:4]]
        envs.close()
        return seen

    assert same(run(0), run(0)) and not same(run(0), run(1))


def test_gymnasium_makes_both_by_their_id(folders: dict[str, Path]) -> None:
    env = gymnasium.make(DREAM, run=str(folders["discrete"]), render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    picture = env.render()
    assert isinstance(picture, np.ndarray) and picture.tolist() == obs.tolist()
    env.close()
    envs = gymnasium.make_vec(
        DREAM, num_envs=2, vectorization_mode="vector_entry_point", run=str(folders["discrete"]),
        render_mode="rgb_array",
    )
    obs, _ = envs.reset(seed=0)
    frames = envs.render()
    assert frames is not None and np.array_equal(np.stack(frames), obs)
    envs.close()


def test_what_cannot_be_offered_is_a_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'observation="image" needs a model that decodes images; use observ'):
        worldmodel.dream_env(folders["vector"])
    with pytest.raises(UserError, match="render_mode= needs"):
        worldmodel.dream_env(folders["vector"], observation="features", render_mode="rgb_array")
    with pytest.raises(UserError, match="did you mean 'replay'"):
        worldmodel.dream_env(folders["discrete"], starts="repaly")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="horizon must be at least 1"):
        worldmodel.dream_env(folders["discrete"], horizon=0)
    with pytest.raises(UserError, match="num_envs must be at least 1"):
        worldmodel.dream_envs(folders["discrete"], 0)
    env = worldmodel.dream_env(folders["discrete"])
    with pytest.raises(UserError, match="step was called before reset"):
        env.step(0)
    env.reset()
    with pytest.raises(UserError, match=r"1 integers from 0 to 2, got \[3\]"):
        env.step(3)
    env.close()
    with pytest.raises(UserError, match="reset was called after close"):
        env.reset()
    base = tiny_run()
    blind = Run(env=base.env, agent=RandomConfig(), replay=base.replay, train=base.train, device="cpu")
    with pytest.raises(UserError, match="its RandomAgent has no world model"):
        worldmodel.dream_env(train(tmp_path / "random", blind))
