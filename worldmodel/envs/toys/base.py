"""What the toys share: the configuration, N of them as one ``specs.BatchEnv``, and one of them as a ``specs.Env``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from worldmodel.envs.seeds import env_seed
from worldmodel.envs.toys.catch import Catch
from worldmodel.envs.toys.distractor import DRAWS, Distractor
from worldmodel.envs.toys.glide import Glide
from worldmodel.envs.toys.recall import Recall
from worldmodel.errors import EnvError, unknown
from worldmodel.specs import ActionSpec, ArraySpec, BatchStep, EnvSpec, EnvStep, Simulation

TaskName = Literal["catch", "glide", "recall"]
DistractorName = Literal["none", "moving"]
CourseName = Literal["open", "upwind"]

VIDEO_SIZE = 128
"""Pictures for videos are enlarged to about this side, pixels."""


class Task(Protocol):
    """The rules and the look of N games. All that changes is in ``state``, arrays with a leading N; chance enters only
    through ``begin``, so a game's course follows from its first uniforms and the actions."""

    state: dict[str, np.ndarray]
    background: np.ndarray
    """(3,) uint8."""

    @property
    def action(self) -> ActionSpec: ...
    @property
    def draws(self) -> int:
        """Uniform numbers that an episode takes."""
        ...

    @property
    def max_steps(self) -> int: ...
    @property
    def reference(self) -> dict[str, float]: ...
    def begin(self, rows: np.ndarray, uniform: np.ndarray) -> None:
        """Start episodes in (R,) rows from (R, draws) uniforms in [0, 1)."""
        ...

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of every row from (N, A): reward, is_last, is_terminal. Rows whose episode is over do anything."""
        ...

    def draw(self, images: np.ndarray) -> None:
        """Onto backgrounds, (N, size, size, 3) uint8."""
        ...

    def expert(self) -> np.ndarray:
        """What a player does who sees the state: (N,) choices, or (N, A) for continuous actions."""
        ...


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """One of the built-in pixel games.

    >>> ToyConfig(task="recall", distractor="moving").name
    'toy/recall8+distractor'
    """

    task: TaskName = "catch"
    """"catch": discrete, short memory; "glide": continuous, dense reward; "recall": discrete, long memory."""
    size: int = 32
    """Height and width of "image", pixels; a multiple of 16 from 32 to 256. The game is the same at any size."""
    distractor: DistractorName = "none"
    """"moving": coloured blobs drift behind the game."""
    course: CourseName = "open"
    """"upwind": in "glide", from the left of the room to the right against the wind, where noise alone never gets; the
    other games have none."""
    delay: int = 8
    """Empty pictures between the cue of "recall" and the question; the other games have none."""
    shortest: int | None = None
    """Where given, the delay that games of "recall" begin with when they are learned from: three right answers
    in a row double it, up to ``delay``, and a wrong one halves it. Evaluations have ``delay`` alone."""

    def __post_init__(self) -> None:
        for name, known in (
            ("task", get_args(TaskName)), ("distractor", get_args(DistractorName)), ("course", get_args(CourseName)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(unknown(name, str(getattr(self, name)), known))
        if self.size % 16 or not 32 <= self.size <= 256:
            raise ValueError(f"size must be a multiple of 16 from 32 to 256 pixels, got {self.size}; take 32 or 64")
        if self.delay < 0:
            raise ValueError(f"delay must not be negative, got {self.delay}")
        if self.shortest is not None and not 0 <= self.shortest <= self.delay:
            raise ValueError(f"shortest must be from 0 to delay={self.delay}, got {self.shortest}")

    @property
    def name(self) -> str:
        """"toy/catch", "toy/recall8" (with its delay, "toy/recall2-8" if it grows), "toy/glide+distractor"; other
        sizes than 32 are named too."""
        shortest = f"{self.shortest}-" if self.shortest is not None else ""
        delay = f"{shortest}{self.delay}" if self.task == "recall" else ""
        size = f"/{self.size}px" if self.size != 32 else ""
        course = "+upwind" if self.task == "glide" and self.course == "upwind" else ""
        return f"toy/{self.task}{delay}{course}{'+distractor' if self.distractor == 'moving' else ''}{size}"

    def evaluation(self) -> ToyConfig:
        """See ``specs.Evaluates``: with the longest delay alone."""
        return replace(self, shortest=None)

    def build(self, index: int = 0) -> Toy:
        """One game; until it is seeded it draws from stream ``index``."""
        return Toy(self, index)

    def build_batch(self, num_envs: int) -> ToyBatch:
        """``num_envs`` games that step together."""
        return ToyBatch(self, num_envs)

    def simulation(self) -> Simulation:
        """Futures of running games, see ``specs.Simulates``."""
        from worldmodel.envs.toys.simulation import ToySimulation

        return ToySimulation(self)


class ToyBatch:
    """N games: ``specs.BatchEnv``. Row i does the same for any N, and the same as a single :class:`Toy` that was given
    ``env_seed(seed, i)``."""

    def __init__(self, config: ToyConfig, num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.config = config
        self.task: Task = make_task(config, num_envs)
        self._num_envs = num_envs
        self._shape = (num_envs, config.size, config.size, 3)
        self._distractor = Distractor(num_envs, config.size) if config.distractor == "moving" else None
        self._background = np.ascontiguousarray(np.broadcast_to(self.task.background, self._shape[1:]))
        self._pending = np.zeros(num_envs, bool)
        """Rows whose episode is over: the next step resets them."""
        self._has_begun = False
        self._spec = EnvSpec(
            name=config.name,
            obs={"image": ArraySpec(shape=self._shape[1:], dtype="uint8")},
            action=self.task.action,
            max_steps=self.task.max_steps,
            reference=dict(self.task.reference),
        )
        self._streams = [_Streams(env_seed(0, i)) for i in range(num_envs)]

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self, seed: int) -> BatchStep:
        """Start all episodes; row i is seeded by ``env_seed(seed, i)``."""
        return self.restart([env_seed(seed, i) for i in range(self._num_envs)])

    def restart(self, seeds: Sequence[int | None]) -> BatchStep:
        """Start all episodes, each row from its own seed, or going on with its streams where that is None."""
        for i, seed in enumerate(seeds):
            if seed is not None:
                self._streams[i] = _Streams(seed)
        self._begin(np.arange(self._num_envs))
        self._has_begun = True
        self._pending[:] = False
        no = np.zeros(self._num_envs, bool)
        return BatchStep(
            obs={"image": self._draw()}, reward=np.zeros(self._num_envs, np.float32),
            is_first=np.ones(self._num_envs, bool), is_last=no, is_terminal=no.copy(),
        )

    def step(self, action: np.ndarray) -> BatchStep:
        """Apply (N, A) float32; where the last step was ``is_last``, start an episode instead.

        Raises:
            EnvError: before the first reset, for actions of another shape, and for NaN in a row that plays.
        """
        first = self._pending
        has_resets = bool(first.any())
        self._check(action, first, has_resets)
        reward, is_last, is_terminal = self.task.advance(action)
        if self._distractor is not None:
            self._distractor.advance()
        if has_resets:
            self._begin(np.flatnonzero(first))
            reward[first], is_last[first], is_terminal[first] = 0.0, False, False
        self._pending = is_last.copy()
        return BatchStep(
            obs={"image": self._draw()}, reward=reward, is_first=first, is_last=is_last, is_terminal=is_terminal
        )

    def render(self, index: int = 0) -> np.ndarray:
        """A picture of now, enlarged for videos."""
        times = max(1, VIDEO_SIZE // self.config.size)
        return self._draw()[index].repeat(times, 0).repeat(times, 1)

    def get_state(self) -> list[dict[str, Any]]:
        """Per row: the game, the background, their random streams, and whether a reset is due."""
        return [
            {
                "name": self._spec.name,
                "task": {key: values[i].tolist() for key, values in self.task.state.items()},
                "distractor": {key: values[i].tolist() for key, values in self._distractor_state().items()},
                "streams": self._streams[i].state(),
                "pending": bool(self._pending[i]),
            }
            for i in range(self._num_envs)
        ]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Go on from another batch's states. Raises EnvError for another game or number of rows."""
        if len(state) != self._num_envs:
            raise EnvError(f"{self._spec.name}: {len(state)} states were given for {self._num_envs} environments")
        for i, row in enumerate(state):
            if row["name"] != self._spec.name:
                raise EnvError(f"the state belongs to {row['name']!r}, not to {self._spec.name!r}; build that one")
            for mine, given in ((self.task.state, row["task"]), (self._distractor_state(), row["distractor"])):
                for key, values in mine.items():
                    values[i] = given[key]
            self._streams[i].load(row["streams"])
            self._pending[i] = row["pending"]
        self._has_begun = True

    def close(self) -> None:
        """Nothing is held but memory."""

    def _begin(self, rows: np.ndarray) -> None:
        streams = [self._streams[i] for i in rows.tolist()]
        self.task.begin(rows, np.stack([stream.task.random(self.task.draws) for stream in streams]))
        if self._distractor is not None:
            self._distractor.begin(rows, np.stack([stream.distractor.random(DRAWS) for stream in streams]))

    def _draw(self) -> np.ndarray:
        images = np.empty(self._shape, np.uint8)
        if self._distractor is None:
            images[...] = self._background
        else:
            self._distractor.draw(images)
        self.task.draw(images)
        return images

    def _check(self, action: np.ndarray, first: np.ndarray, has_resets: bool) -> None:
        if not self._has_begun:
            raise EnvError(f"{self._spec.name}: step was called before reset; call reset first")
        if action.shape != (self._num_envs, self._spec.action.size):
            raise EnvError(
                f"{self._spec.name}: actions must be (N, A) = {(self._num_envs, self._spec.action.size)}, "
                f"got {action.shape}"
            )
        if np.isnan(action[~first] if has_resets else action).any():
            raise EnvError(f"{self._spec.name}: an action is NaN: {action.tolist()}; look at the policy that chose it")

    def _distractor_state(self) -> dict[str, np.ndarray]:
        return {} if self._distractor is None else self._distractor.state


class Toy:
    """One game: ``specs.Env`` and ``specs.Clones``."""

    def __init__(self, config: ToyConfig, index: int = 0) -> None:
        self.batch = ToyBatch(config, 1)
        self.batch._streams[0] = _Streams(env_seed(0, index))
        self._is_seeded = False

    @property
    def spec(self) -> EnvSpec:
        return self.batch.spec

    @property
    def is_seeded(self) -> bool:
        """Whether it was ever seeded, or given a state."""
        return self._is_seeded

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start an episode; a seed reseeds game and background, None goes on with their streams."""
        step = self.batch.restart([seed])
        self._is_seeded |= seed is not None
        return EnvStep(obs={"image": step.obs["image"][0]}, is_first=True)

    def step(self, action: np.ndarray) -> EnvStep:
        """Apply one action, (A,) float32. Raises EnvError before reset, after ``is_last``, for a wrong shape or NaN."""
        if self.batch._pending[0]:
            raise EnvError(f"{self.spec.name}: step was called after is_last; call reset first")
        step = self.batch.step(np.asarray(action)[None])
        return EnvStep(
            obs={"image": step.obs["image"][0]}, reward=float(step.reward[0]),
            is_last=bool(step.is_last[0]), is_terminal=bool(step.is_terminal[0]),
        )

    def render(self) -> np.ndarray:
        """A picture of now, enlarged for videos."""
        return self.batch.render()

    def get_state(self) -> dict[str, Any]:
        """See ``specs.Clones``."""
        return self.batch.get_state()[0]

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from another game's state. Raises EnvError for a state of another game."""
        self.batch.set_state([state])
        self._is_seeded = True

    def close(self) -> None:
        """Nothing is held but memory."""


def expert(toys: ToyBatch) -> np.ndarray:
    """The action (N, A) float32 of a player who sees the whole state; its mean return is ``spec.reference["optimum"]``.

    >>> toys = ToyConfig(task="recall", delay=0).build_batch(1)
    >>> first = toys.reset(0)
    >>> (toys.step(expert(toys)).reward, toys.step(expert(toys)).reward)
    (array([0.], dtype=float32), array([1.], dtype=float32))
    """
    chosen = toys.task.expert()
    if toys.spec.action.kind == "continuous":
        return chosen.astype(np.float32)
    return np.eye(toys.spec.action.size, dtype=np.float32)[chosen]


class _Streams:
    """The random streams of one row: the background draws from its own, so the game is the same with and without."""

    def __init__(self, seed: int) -> None:
        task, distractor = np.random.SeedSequence(seed).spawn(2)
        self.task = np.random.Generator(np.random.PCG64(task))
        self.distractor = np.random.Generator(np.random.PCG64(distractor))

    def state(self) -> dict[str, Any]:
        return {"task": self.task.bit_generator.state, "distractor": self.distractor.bit_generator.state}

    def load(self, state: dict[str, Any]) -> None:
        self.task.bit_generator.state, self.distractor.bit_generator.state = state["task"], state["distractor"]


def make_task(config: ToyConfig, num_envs: int) -> Task:
    """The rules and the look of ``num_envs`` games."""
    if config.task == "catch":
        return Catch(num_envs, config.size)
    if config.task == "glide":
        return Glide(num_envs, config.size, upwind=config.course == "upwind")
    return Recall(num_envs, config.size, config.delay, config.shortest)
