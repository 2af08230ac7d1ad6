"""Datasets of one's own: by a trained agent, by a policy without one, and out of the replay of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import runs
from worldmodel.config import Run
from worldmodel.data.episodes import Actions, Dataset, Episode, Header
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.pool import make_pool
from worldmodel.errors import UserError
from worldmodel.replay.ring import make_replay
from worldmodel.specs import ActionSpec, EnvConfig, EnvSpec

Policy = Callable[[dict[str, np.ndarray], np.random.Generator], np.ndarray]
"""Observations (...) and a random stream to an action (A,): in [-1, 1], or one-hot."""

ENVS = 8
"""Environments that are played side by side, at most."""


def play(config: EnvConfig, policy: Policy, *, episodes: int, seed: int = 0) -> Dataset:
    """Whole episodes of an environment by a policy without memory; the same seed gives the same.

    Raises: EnvError, and UserError for a policy whose actions do not fit.
    """
    header = _header(config, _spec(config))

    def read() -> Iterator[Episode]:
        rng = np.random.default_rng(seed)

        def act(step: Any) -> torch.Tensor:
            rows = [{key: x[i].numpy() for key, x in step.obs.items()} for i in range(len(step.reward))]
            chosen = np.stack([np.asarray(policy(row, rng), np.float32).reshape(-1) for row in rows])
            if chosen.shape[1] != header.action.size or not np.isfinite(chosen).all():
                raise UserError(f"the policy must give {header.action.size} finite numbers, got {chosen[0]}")
            return torch.from_numpy(chosen)

        yield from _played(config, header, act, episodes, seed)

    return Dataset(header=header, read=read)


def play_agent(
    run_dir: Path, *, episodes: int, explore: bool = False, seed: int = 0, device: str = "auto",
    say: runs.Say = lambda text: None, allow: tuple[str, ...] = (),
) -> Dataset:
    """Whole episodes of a trained agent, by the mode of its policy unless ``explore``.

    Raises: UserError, CheckpointError, EnvError.
    """
    loaded = runs.load(run_dir, device=device, say=say, allow=allow)
    header = _header(loaded.run.env, loaded.spec)

    def read() -> Iterator[Episode]:
        carry = loaded.initial(min(ENVS, episodes), seed=seed)

        def act(step: Any) -> torch.Tensor:
            nonlocal carry
            with torch.no_grad():
                action, carry = loaded.act(carry, step, explore=explore)
            return action.cpu()

        yield from _played(loaded.run.env, header, act, episodes, seed)

    return Dataset(header=header, read=read)


def remembered(
    run_dir: Path, *, say: runs.Say = lambda text: None, allow: tuple[str, ...] = ()
) -> Dataset:
    """What the replay in a run's newest checkpoint holds: from the first steps of the run (where its capacity was
    enough) to that checkpoint, unfinished episodes as truncated ones. "medium-replay" is this, of a run that was
    stopped halfway.

    Raises: UserError, CheckpointError, EnvError.
    """
    loaded = runs.load(run_dir, device="cpu", say=say, allow=allow)
    run: Run = loaded.run
    if run.is_offline:
        raise UserError(f"{run_dir} learned from {run.data} and has lived nothing; convert that instead")
    header = _header(run.env, loaded.spec)
    replay = make_replay(
        run.replay, loaded.spec, loaded.agent.memory_spec, run.train.num_envs, device=torch.device("cpu"), seed=run.seed
    )
    replay.load(loaded.checkpoint.folder("replay"), salvage=not loaded.checkpoint.is_whole)
    low, total = replay.window.low, replay.window.total

    def read() -> Iterator[Episode]:
        for env in range(replay.num_envs):
            first = replay.storage.grid("is_first")[env].numpy()
            starts = [s for s in range(low, total) if s == low or first[s % replay.storage.slots]]
            for begin, end in zip(starts, [*starts[1:], total]):
                if end - begin < 2:
                    continue
                b = replay.read(begin, end, env=env)
                terminated = bool(b.is_terminal[0, -1])
                yield Episode(
                    obs={key: x[0].numpy() for key, x in b.obs.items()},
                    action=header.action.from_unit(b.action[0, :-1].numpy()), reward=b.reward[0, 1:].numpy(),
                    terminated=terminated, truncated=not terminated, source=f"{run_dir}, steps {begin} to {end - 1}",
                )

    return Dataset(header=header, read=read)


def random_policy(action: ActionSpec) -> Policy:
    """Every action alike."""
    def act(obs: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        if action.kind == "discrete":
            return np.eye(action.size, dtype=np.float32)[rng.integers(action.size)]
        return rng.uniform(-1, 1, action.size).astype(np.float32)

    return act


def action_of(config: EnvConfig) -> ActionSpec:
    """Of an environment, which is built for it and closed again."""
    return _spec(config).action


def _played(
    config: EnvConfig, header: Header, act: Callable[[Any], torch.Tensor], episodes: int, seed: int
) -> Iterator[Episode]:
    """Every environment gives a fixed number of episodes, so that short ones are not counted more often."""
    count = min(ENVS, episodes)
    quota = [episodes // count + (i < episodes % count) for i in range(count)]
    pool = make_pool(config, count)
    try:
        step = pool.reset(seed)
        held: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]
        done = [0] * count
        while sum(done) < episodes:
            action = act(step)
            for i in range(count):
                if done[i] == quota[i]:
                    continue
                obs = {key: x[i].numpy().copy() for key, x in step.obs.items()}
                held[i].append((obs, action[i].numpy().copy(), float(step.reward[i])))
                if step.is_last[i]:
                    where = f"{header.name}, episode {sum(done)}"
                    yield _episode(held[i], header.action, bool(step.is_terminal[i]), where)
                    held[i], done[i] = [], done[i] + 1
            step = pool.step(action)
    finally:
        pool.close()


def _episode(rows: list[tuple[Any, ...]], action: Actions, terminated: bool, where: str) -> Episode:
    obs, actions, rewards = zip(*rows)
    return Episode(
        obs={key: np.stack([row[key] for row in obs]) for key in obs[0]},
        action=action.from_unit(np.stack(actions[:-1])), reward=np.array(rewards[1:], np.float32),
        terminated=terminated, truncated=not terminated, source=where,
    )


def _spec(config: EnvConfig) -> EnvSpec:
    env = config.build(0)
    try:
        return env.spec
    finally:
        env.close()


def _header(config: EnvConfig, spec: EnvSpec) -> Header:
    """With the bounds that a Gymnasium environment has, in whose units its actions are then written."""
    bounds: dict[str, Any] = {}
    name = config.name
    if isinstance(config, GymConfig):
        name, env = config.id, config.make()
        if spec.action.kind == "continuous":
            bounds = {side: tuple(np.ravel(getattr(env.action_space, side)).astype(float)) for side in ("low", "high")}
        env.close()
    action = Actions(kind=spec.action.kind, size=spec.action.size, **bounds)
    return Header(name=name.replace("/", "-"), obs=spec.obs, action=action, env=name)
