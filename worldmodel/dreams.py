"""A learned world model as a Gymnasium environment, whose id is ``worldmodel.dreams:worldmodel/Dream-v0``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from worldmodel import runs, tree
from worldmodel.errors import UserError, unknown
from worldmodel.protocols import Decodes, Imagines, Remembers, WorldModel
from worldmodel.replay.ring import make_replay
from worldmodel.rng import Stream
from worldmodel.specs import Env
from worldmodel.train.video import to_bytes, unit_rgb
from worldmodel.trained import Trained

ID = "worldmodel/Dream-v0"

Observation = Literal["image", "features"]
Starts = Literal["reset", "replay"]
Ending = Literal["sampled", "threshold"]

_BANK = (64, 16)
"""Sequences of replay and their length: as many states for dreams to begin in."""


class DreamOptions(TypedDict, total=False):
    """How to dream; the options of both environments, with these defaults."""

    observation: Observation
    """"image" (default): what the model decodes, uint8; several images become a Dict. "features": what its policy and
    heads read, float32."""
    starts: Starts
    """Where a dream begins. "reset" (default): the first frame of a new episode of the real environment. "replay": any
    state of what the newest checkpoint's replay holds."""
    ending: Ending
    """A dream terminates with the probability that the model gives ("sampled", default), or where that is at least one
    half ("threshold")."""
    horizon: int
    """Steps after which a dream is truncated; 200."""
    device: str
    """"cpu", "cuda", or "auto" (default) for the GPU where there is one."""
    allow: Sequence[str]
    """Modules outside of worldmodel that the run's configuration may name; they are imported."""


def dream_env(run: Path | str, *, render_mode: str | None = None, **options: Unpack[DreamOptions]) -> DreamEnv:
    """The world model of a run folder (or of one checkpoint in it) as a Gymnasium environment.

    Actions are the agent's own: Discrete, or a Box in [-1, 1]. The same seed gives the same dream on the same machine.

    Raises: UserError for unknown options, and where the model cannot offer what they ask for.
    """
    env: Any = gymnasium.make(ID, run=str(run), render_mode=render_mode, disable_env_checker=True, **options)
    return env.unwrapped


def dream_envs(run: Path | str, num_envs: int, **options: Unpack[DreamOptions]) -> DreamVectorEnv:
    """``num_envs`` dreams as one Gymnasium vector environment: one call of the model steps all of them.

    A dream that has ended begins anew in the next step, which ignores its action (``AutoresetMode.NEXT_STEP``).
    """
    return DreamVectorEnv(run=run, num_envs=num_envs, **options)


class DreamEnv(gymnasium.Env[Any, Any]):
    """One dream. ``info["continues"]`` is the model's probability of going on."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(self, run: Path | str, render_mode: str | None = None, **options: Unpack[DreamOptions]) -> None:
        """As :func:`dream_env`."""
        self._dream = _Dream(run, 1, **options)
        if render_mode is not None:
            self._dream.require_pictures("render_mode=")
        self.render_mode = render_mode
        if not self._dream.pictures:
            self.metadata = {**self.metadata, "render_modes": []}
        self.observation_space, self.action_space = self._dream.observation_space, self._dream.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a dream."""
        super().reset(seed=seed)
        self._dream.begin(self.np_random)
        return _row(self._dream.observe()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Dream one step. Raises: UserError before the first reset."""
        reward, terminated, truncated, continues = self._dream.step(np.asarray(action)[None])
        obs, info = _row(self._dream.observe()), {"continues": float(continues[0])}
        return obs, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """uint8 (h, w, 3), what the model decodes of now, where ``render_mode`` asks for it."""
        return self._dream.draw()[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the real environment that dreams begin in."""
        self._dream.close()


class DreamVectorEnv(VectorEnv[Any, Any, Any]):
    """N dreams. ``info["continues"]`` (N,) are the model's probabilities of going on."""

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": ["rgb_array"], "render_fps": 12, "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self, run: Path | str, num_envs: int = 1, render_mode: str | None = None, **options: Unpack[DreamOptions]
    ) -> None:
        """As :func:`dream_envs`."""
        if num_envs < 1:
            raise UserError(f"num_envs must be at least 1, got {num_envs}")
        self._dream = _Dream(run, num_envs, **options)
        if render_mode is not None:
            self._dream.require_pictures("render_mode=")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space, self.single_action_space = (
            self._dream.observation_space, self._dream.action_space,
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Begin all dreams."""
        super().reset(seed=seed)
        self._over = np.zeros(self.num_envs, bool)
        self._dream.begin(self.np_random)
        return self._dream.observe(), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Dream one step; the dreams that are over begin anew instead, with reward 0."""
        reward, terminated, truncated, continues = self._dream.step(np.asarray(actions))
        if self._over.any():
            fresh = self._over
            self._dream.restart(np.flatnonzero(fresh), self.np_random)
            reward, continues = np.where(fresh, 0.0, reward), np.where(fresh, 1.0, continues)
            terminated, truncated = terminated & ~fresh, truncated & ~fresh
        self._over = terminated | truncated
        return self._dream.observe(), reward, terminated, truncated, {"continues": continues}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What the model decodes of each dream, uint8 (h, w, 3), where ``render_mode`` asks for it."""
        return tuple(self._dream.draw()) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        """Close the real environment that dreams begin in."""
        self._dream.close()


class _Dream:
    """N dreams in tensors; both environments are views of it. Its noise is a stream of its own, seeded by ``begin``."""

    def __init__(
        self, run: Path | str, num_envs: int, *, observation: Observation = "image", starts: Starts = "reset",
        ending: Ending = "sampled", horizon: int = 200, device: str = "auto", allow: Sequence[str] = (),
    ) -> None:
        for name, given, kind in (
            ("observation", observation, Observation), ("starts", starts, Starts), ("ending", ending, Ending),
        ):
            if given not in get_args(kind):
                raise UserError(unknown(name, given, get_args(kind)))
        if horizon < 1:
            raise UserError(f"horizon must be at least 1 step, got {horizon}")
        trained = runs.load(run, device=device, allow=allow)
        agent = trained.agent
        if not isinstance(agent, Imagines):
            raise UserError(f"{run}: its {type(agent).__name__} has no world model to dream in; give another run")
        self.run, self.count, self.horizon, self.spec = run, num_envs, horizon, trained.spec
        self.is_sampled = ending == "sampled"
        self.model: WorldModel[Any] = agent.model
        with torch.no_grad():
            blank = self.model.initial(1)
            self.device = tree.leaves(blank)[0].device
            pictures = self.model.decode(blank) if isinstance(self.model, Decodes) else {}
            width = self.model.features(blank).shape[-1]
        self.pictures = {key: tuple(x.shape[1:]) for key, x in pictures.items()}
        if observation == "image":
            self.require_pictures('observation="image"')
        self.observation_space = self._space(observation, width)
        size = self.spec.action.size
        self.action_space: spaces.Space[Any] = (
            spaces.Discrete(size) if self.spec.action.kind == "discrete" else spaces.Box(-1.0, 1.0, (size,), np.float32)
        )
        self.observation = observation
        self.env: Env | None = trained.run.env.build(0) if starts == "reset" else None
        self.bank = None if starts == "reset" else self._lived(trained)
        self.state: Any = None
        self.age = np.zeros(num_envs, np.int64)

    def require_pictures(self, wanted: str) -> None:
        """Raises: UserError where the model decodes no image."""
        if not self.pictures:
            raise UserError(f'{self.run}: {wanted} needs a model that decodes images; use observation="features"')

    def begin(self, rng: np.random.Generator) -> None:
        """Begin all dreams, with noise and starts drawn from ``rng``."""
        self.stream = Stream(seed=int(rng.integers(2**62)), device=self.device)
        self.state = self._starts(self.count, rng)
        self.age[:] = 0

    def restart(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        """Begin some of the dreams anew."""
        at, fresh = torch.from_numpy(rows).to(self.device), self._starts(len(rows), rng)
        self.state = tree.map(lambda old, new: old.index_copy(0, at, new), self.state, fresh)
        self.age[rows] = 0

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(N, ...) actions of the action space -> (N,) reward, terminated, truncated, continues."""
        if self.state is None:
            raise UserError("step was called before reset; call reset first")
        given = self._encode(action)
        with self.stream:
            state = self.model.step(self.state, given)
            predicted = self.model.predict(self.state, given, state)
            continues = predicted.continues.clamp(0.0, 1.0)
            over = continues <= (torch.rand_like(continues) if self.is_sampled else 0.5)
        self.state = state
        self.age += 1
        terminated = over.cpu().numpy()
        truncated = (self.age >= self.horizon) & ~terminated
        return predicted.reward.cpu().numpy().astype(np.float64), terminated, truncated, continues.cpu().numpy()

    @torch.no_grad()
    def observe(self) -> Any:
        """The observation of now, (N, ...), of the observation space."""
        if self.observation == "features":
            return self.model.features(self.state).float().cpu().numpy()
        images = {key: to_bytes(x.float().cpu().numpy()) for key, x in self._decode().items()}
        return next(iter(images.values())) if len(images) == 1 else images

    @torch.no_grad()
    def draw(self) -> np.ndarray:
        """(N, h, w, 3) uint8 of the first image that the model decodes. Raises: UserError before the first reset."""
        if self.state is None:
            raise UserError("render was called before reset; call reset first")
        return to_bytes(unit_rgb(next(iter(self._decode().values()))))

    def close(self) -> None:
        if self.env is not None:
            self.env.close()
            self.env = None

    def _decode(self) -> dict[str, Tensor]:
        assert isinstance(self.model, Decodes)
        return self.model.decode(self.state)

    def _space(self, observation: Observation, width: int) -> spaces.Space[Any]:
        if observation == "features":
            # any number, but Gymnasium takes an unbounded Box for a mistake
            most = float(np.finfo(np.float32).max)
            return spaces.Box(-most, most, (width,), np.float32)
        images: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(0, 255, shape, np.uint8) for key, shape in self.pictures.items()
        }
        return next(iter(images.values())) if len(images) == 1 else spaces.Dict(images)

    def _encode(self, action: np.ndarray) -> Tensor:
        """(N, A) as the model knows them."""
        size = self.spec.action.size
        if self.spec.action.kind == "discrete":
            chosen = action.astype(np.int64)
            if chosen.shape != (self.count,) or not ((chosen >= 0) & (chosen < size)).all():
                raise UserError(f"actions must be {self.count} integers from 0 to {size - 1}, got {action.tolist()}")
            vector = np.eye(size, dtype=np.float32)[chosen]
        else:
            if action.shape != (self.count, size):
                raise UserError(f"actions must have shape {(self.count, size)}, got {action.shape}")
            vector = action.astype(np.float32).clip(-1.0, 1.0)
        return torch.from_numpy(vector).to(self.device)

    @torch.no_grad()
    def _starts(self, count: int, rng: np.random.Generator) -> Any:
        """(count, ...) states to begin in."""
        if self.bank is not None:
            at = torch.from_numpy(rng.integers(tree.leaves(self.bank)[0].shape[0], size=count)).to(self.device)
            return tree.index(self.bank, at)
        if self.env is None:
            raise UserError("reset was called after close; make another dream")
        firsts = [self.env.reset(int(seed)).obs for seed in rng.integers(2**31, size=count)]
        # (count, 1, ...): a first frame is a sequence of one
        obs = {key: torch.from_numpy(np.stack([x[key] for x in firsts])[:, None]) for key in firsts[0]}
        nothing = torch.zeros(count, 1, self.spec.action.size, device=self.device)
        is_first = torch.ones(count, 1, dtype=torch.bool, device=self.device)
        with self.stream:
            states = self.model.observe(self.model.initial(count), tree.to(obs, self.device), nothing, is_first)
        return tree.index(states, (slice(None), 0))

    @torch.no_grad()
    def _lived(self, trained: Trained) -> Any:
        """(K, ...) states that the model infers from real sequences, none of them the last of its episode."""
        run, agent = trained.run, trained.agent
        replay = make_replay(
            run.replay, trained.spec, agent.memory_spec, run.train.num_envs, device=self.device, seed=run.seed
        )
        replay.load(trained.checkpoint.folder("replay"))
        if not replay.is_ready:
            raise UserError(f'{trained.checkpoint.path} holds too few steps for starts="replay"; use starts="reset"')
        batch = replay.peek(rows=_BANK[0], length=_BANK[1])
        remembers = isinstance(self.model, Remembers) and batch.context
        before = self.model.unpack(batch.context) if remembers else self.model.initial(_BANK[0])  # type: ignore[attr-defined]
        with Stream(seed=0, device=self.device):
            states = self.model.observe(before, batch.obs, batch.prev_action, batch.is_first)
        return tree.index(tree.flatten_time(states), ~batch.is_last.flatten())


def _row(observation: Any) -> Any:
    return tree.index(observation, 0)


if ID not in gymnasium.registry:
    gymnasium.register(
        ID, entry_point="worldmodel.dreams:DreamEnv", vector_entry_point="worldmodel.dreams:DreamVectorEnv"
    )
