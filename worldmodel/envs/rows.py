"""N separate environments stepped together, one per row: the reset rule, and what happens when one of them fails.

An environment that raises, dies, hangs or breaks its contract (non-finite numbers, wrong shape or type) is thrown away
and built anew, and its episode is marked truncated:

* It failed in ``step``: this step of the row repeats its last good observation with reward 0, ``is_last`` and not
  ``is_terminal``; the next step is the ``is_first`` of the new environment's first episode.
* It failed in ``render`` or ``get_state``: the row's next step is that truncation.
* It failed in the reset after an episode: nothing is cut, and the same step returns the ``is_first`` of the new
  environment.
* It failed in the very first reset: that is a mistake of the set-up, and an EnvError at once.

``max_restarts`` within :data:`WINDOW` seconds are allowed to each environment; the next fault is an EnvError. A new
environment is seeded from the old one's number and the count of its restarts.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from worldmodel.envs.host import Failure, Host, Ready, obs_arrays
from worldmodel.envs.seeds import env_seed
from worldmodel.errors import EnvError
from worldmodel.specs import BatchStep, EnvConfig, EnvSpec, EnvStep

WINDOW = 300.0
"""Seconds over which restarts are counted."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0

Request = tuple[int, str, Any]
"""(row, verb of ``Host.do``, its argument)."""
Say = Callable[[str], None]


class Rows(ABC):
    """N environments with one fault rule; where they run is up to the subclass. Speaks numpy."""

    def __init__(self, config: EnvConfig, num_envs: int, *, max_restarts: int, say: Say) -> None:
        self._config, self._num_envs, self._max_restarts, self._say = config, num_envs, max_restarts, say
        self._seed = 0
        self._has_begun = self._is_closed = False
        self._pending = [True] * num_envs
        """The row's next step resets it."""
        self._cut = [False] * num_envs
        """The row's environment failed outside of step: its next step says so."""
        self._next_seed: list[int | None] = [None] * num_envs
        """What the row's next reset is seeded with; None goes on with its random streams."""
        self._row_seed = [0] * num_envs
        self._generation = [0] * num_envs
        """Restarts of each row since its pool was seeded."""
        self._faults: list[deque[float]] = [deque() for _ in range(num_envs)]
        self._told: set[tuple[int, str]] = set()
        """Faults that end nothing are told once."""
        self._restarts = self._truncated = 0
        self._action = np.zeros((num_envs, 0), np.float32)
        """(N, A) of the step under way, and what it asks for."""
        self._requests: list[Request] = []
        ready = self._build()
        for i, other in enumerate(ready):
            if other.spec != ready[0].spec:
                self.close()
                raise EnvError(
                    f"environment {i} of {config.name} is {other.spec}, but environment 0 is {ready[0].spec}; "
                    f"all environments of a pool must have one spec"
                )
        self._spec = ready[0].spec
        self._can_clone = all(other.can_clone for other in ready)
        # The last good observations; what is returned is a copy.
        self._obs = obs_arrays(self._spec, num_envs)
        self._reward = np.zeros(num_envs, np.float32)
        self._first, self._last, self._terminal = (np.zeros(num_envs, bool) for _ in range(3))

    @abstractmethod
    def _build(self) -> list[Ready]:
        """Build all environments. Raises EnvError with a sentence, and leaves nothing behind then."""

    @abstractmethod
    def _ask(self, requests: list[Request]) -> None:
        """Let begin what can run without us."""

    @abstractmethod
    def _answers(self, requests: list[Request]) -> list[Any]:
        """The answers to what was asked last, or Failures, in order."""

    @abstractmethod
    def _renew(self, row: int, delay: float) -> None:
        """Throw the row's environment away and build another after ``delay`` seconds; that it cannot be built is told
        by its next answer."""

    @abstractmethod
    def close(self) -> None:
        """End all environments, within 5 seconds."""

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self, seed: int) -> BatchStep:
        """Start all episodes; row i is seeded with ``env_seed(seed, i)``. Raises EnvError."""
        self._check_open()
        is_very_first, self._seed = not self._has_begun, seed
        self._row_seed = [env_seed(seed, i) for i in range(self._num_envs)]
        self._generation = [0] * self._num_envs
        self._cut = [False] * self._num_envs
        requests: list[Request] = [(i, "reset", self._row_seed[i]) for i in range(self._num_envs)]
        for (i, _, _), answer in zip(requests, self._run(requests)):
            if isinstance(answer, Failure):
                if is_very_first:
                    raise EnvError(self._explain_first(i, answer))
                answer = self._reset_again(i, answer)
            self._put(i, answer)
        self._has_begun = True
        return self._copy()

    def send(self, action: np.ndarray) -> None:
        """Begin a step with (N, A) float32, ours to keep. Raises EnvError before a reset."""
        self._check_begun()
        self._action = action.copy()  # environments may change what they are given
        self._requests = [
            (i, "reset", self._next_seed[i]) if self._pending[i] else (i, "step", action[i])
            for i in range(self._num_envs)
            if not self._cut[i]
        ]
        self._ask(self._requests)

    def receive(self) -> BatchStep:
        """End the step that was begun. Raises EnvError when an environment has failed too often."""
        self._check_open()
        for i, is_cut in enumerate(self._cut):
            if is_cut:
                self._truncate(i)
        for (i, verb, _), answer in zip(self._requests, self._answers(self._requests)):
            if not isinstance(answer, Failure):
                self._put(i, answer)
            elif verb == "reset":
                self._put(i, self._reset_again(i, answer))
            else:
                self._restart(i, answer, "its episode was cut (truncated)", self._action[i].tolist())
                self._truncate(i)
        return self._copy()

    def render(self, index: int = 0) -> np.ndarray | None:
        """A picture of one environment, or None where there is none."""
        self._check_begun()
        if self._cut[index] or self._next_seed[index] is not None:
            return None  # a new environment that has not begun
        (answer,) = self._run([(index, "render", None)])
        if isinstance(answer, Failure):
            self._note(index, answer, "render")
            return None
        return answer

    def get_state(self) -> list[dict[str, Any]] | None:
        """Per row: the environment, what its next step does, and what a fault there would need."""
        self._check_begun()
        if not self._can_clone:
            return None
        alive = [i for i in range(self._num_envs) if not self._cut[i] and self._next_seed[i] is None]
        answers = dict(zip(alive, self._run([(i, "get_state", None) for i in alive])))
        is_whole = True
        for i, answer in answers.items():
            if isinstance(answer, Failure):
                self._note(i, answer, "get_state")
                is_whole &= answer.is_dead
        if not is_whole:
            return None
        return [
            {
                "name": self._spec.name,
                "env": None if isinstance(answers.get(i), Failure) else answers.get(i),
                "pending": self._pending[i],
                "cut": self._cut[i],
                "next_seed": self._next_seed[i],
                "row_seed": self._row_seed[i],
                "generation": self._generation[i],
                "seed": self._seed,
                "obs": {key: x[i].copy() for key, x in self._obs.items()},
            }
            for i in range(self._num_envs)
        ]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Go on where ``get_state`` was called, here or in another pool of any kind. Raises EnvError for a state of
        another environment or number of them."""
        self._check_open()
        check_states(self._spec, self._num_envs, state, keys=("env", "pending", "obs"))
        requests: list[Request] = [
            (i, "set_state", row["env"]) for i, row in enumerate(state) if row["env"] is not None
        ]
        for (i, _, _), answer in zip(requests, self._run(requests)):
            if isinstance(answer, Failure):
                raise EnvError(f"environment {i} of {self._spec.name} does not take its state: {answer.sentence}")
        for i, row in enumerate(state):
            self._pending[i], self._cut[i], self._next_seed[i] = row["pending"], row["cut"], row["next_seed"]
            self._row_seed[i], self._generation[i] = row["row_seed"], row["generation"]
            for key, x in self._obs.items():
                x[i] = row["obs"][key]
        self._seed = state[0]["seed"]
        self._has_begun = True

    def stats(self) -> dict[str, float]:
        """ "restarts" and "truncated_by_fault", since the pool was made."""
        return {"restarts": float(self._restarts), "truncated_by_fault": float(self._truncated)}

    def _run(self, requests: list[Request]) -> list[Any]:
        self._ask(requests)
        return self._answers(requests)

    def _put(self, row: int, step: EnvStep) -> None:
        for key, x in self._obs.items():
            x[row] = step.obs[key]
        self._reward[row] = step.reward
        self._first[row], self._last[row], self._terminal[row] = step.is_first, step.is_last, step.is_terminal
        self._pending[row] = bool(step.is_last)
        if step.is_first:
            self._next_seed[row] = None

    def _truncate(self, row: int) -> None:
        """The row says: the observation of before, and the end."""
        self._reward[row] = 0.0
        self._first[row], self._last[row], self._terminal[row] = False, True, False
        self._pending[row], self._cut[row] = True, False
        self._truncated += 1

    def _copy(self) -> BatchStep:
        return BatchStep(
            obs={key: x.copy() for key, x in self._obs.items()}, reward=self._reward.copy(),
            is_first=self._first.copy(), is_last=self._last.copy(), is_terminal=self._terminal.copy(),
        )

    def _note(self, row: int, failure: Failure, verb: str) -> None:
        """A fault outside of step: only a dead worker ends the episode."""
        if not failure.is_dead:
            if (row, verb) not in self._told:
                self._told.add((row, verb))
                self._say(f"environment {row} of {self._config.name} failed in {verb}: {failure.sentence}")
            return
        if self._pending[row]:
            self._restart(row, failure, "its episode was over")
        else:
            self._restart(row, failure, "its episode is cut (truncated)")
            self._cut[row] = True

    def _reset_again(self, row: int, failure: Failure) -> EnvStep:
        """The first step of a new environment. Raises EnvError when that fails too often."""
        while True:
            self._restart(row, failure, "it failed between episodes")
            (answer,) = self._run([(row, "reset", self._next_seed[row])])
            if not isinstance(answer, Failure):
                return answer
            failure = answer

    def _restart(self, row: int, failure: Failure, consequence: str, action: list[float] | None = None) -> None:
        now, faults = time.monotonic(), self._faults[row]
        while faults and faults[0] < now - WINDOW:
            faults.popleft()
        if len(faults) >= self._max_restarts:
            raise EnvError(self._explain(row, failure, len(faults) + 1, action))
        faults.append(now)
        self._restarts += 1
        self._generation[row] += 1
        self._row_seed[row] = env_seed(env_seed(self._seed, row), self._generation[row])
        self._next_seed[row] = self._row_seed[row]
        self._say(
            f"environment {row} of {self._config.name} was restarted ({len(faults)} of {self._max_restarts} within "
            f"{WINDOW:.0f} s), {consequence}: {failure.sentence}"
        )
        self._renew(row, min(_FIRST_DELAY * 2 ** (len(faults) - 1), _LONGEST_DELAY))

    def _explain(self, row: int, failure: Failure, faults: int, action: list[float] | None) -> str:
        trace = f"\n{failure.trace.rstrip()}" if failure.trace else ""
        return (
            f"environment {row} of {self._config.name} (worker {row}, seed {self._row_seed[row]}, last action "
            f"{'none: not in a step' if action is None else action}) failed {faults} times within {WINDOW:.0f} s and "
            f"is not restarted again (limit {self._max_restarts}); repair it, here is the last fault: "
            f"{failure.sentence}{trace}"
        )

    def _explain_first(self, row: int, failure: Failure) -> str:
        if failure.is_user:
            return failure.sentence
        trace = f"\n{failure.trace.rstrip()}" if failure.trace else ""
        return (
            f"environment {row} of {self._config.name} (seed {self._row_seed[row]}) failed in its first reset: "
            f"{failure.sentence}{trace}"
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise EnvError(f"the pool of {self._config.name} is closed; make another")

    def _check_begun(self) -> None:
        self._check_open()
        if not self._has_begun:
            raise EnvError(f"the pool of {self._config.name} has not begun; call reset(seed) first")


class SerialRows(Rows):
    """N environments in this process, one after the other. One that hangs, hangs us: that takes processes."""

    def __init__(self, config: EnvConfig, num_envs: int, *, max_restarts: int = 3, say: Say) -> None:
        self._hosts: list[Host | Failure] = []
        super().__init__(config, num_envs, max_restarts=max_restarts, say=say)

    def _build(self) -> list[Ready]:
        for i in range(self._num_envs):
            host = self._build_one(i)
            if isinstance(host, Failure):
                self.close()
                raise EnvError(explain_build(self._config, i, host))
            self._hosts.append(host)
        return [host.ready for host in self._hosts if isinstance(host, Host)]

    def _build_one(self, row: int) -> Host | Failure:
        try:
            return Host(self._config, row)
        except (Exception, SystemExit) as error:  # whatever it is belongs to the environment
            return Failure.of(error)

    def _ask(self, requests: list[Request]) -> None:
        pass

    def _answers(self, requests: list[Request]) -> list[Any]:
        answers: list[Any] = []
        for row, verb, given in requests:
            host = self._hosts[row]
            if isinstance(host, Failure):
                answers.append(host)
                continue
            try:
                answers.append(host.do(verb, given))
            except (Exception, SystemExit) as error:  # whatever it is belongs to the environment
                answers.append(Failure.of(error))
        return answers

    def _renew(self, row: int, delay: float) -> None:
        self._close_one(row)
        time.sleep(delay)
        self._hosts[row] = self._build_one(row)
        ready = self._hosts[row]
        if isinstance(ready, Host) and ready.ready.spec != self._spec:
            ready.close()
            self._hosts[row] = Failure(sentence=f"the new environment has another spec: {ready.ready.spec}")

    def close(self) -> None:
        """End all environments."""
        self._is_closed = True
        for row in range(len(self._hosts)):
            self._close_one(row)
        self._hosts = []

    def _close_one(self, row: int) -> None:
        host = self._hosts[row]
        if isinstance(host, Host):
            try:
                host.close()
            except (Exception, SystemExit) as error:  # a broken environment may not even close
                self._say(f"environment {row} of {self._config.name} failed in close: {Failure.of(error).sentence}")


def explain_build(config: EnvConfig, row: int, failure: Failure) -> str:
    """The sentence for an environment that could not be built: the environment's own where it has one."""
    if failure.is_user:
        return failure.sentence
    trace = f"\n{failure.trace.rstrip()}" if failure.trace else ""
    return f"environment {row} of {config.name} cannot be built: {failure.sentence}{trace}"


def check_states(spec: EnvSpec, num_envs: int, state: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Raises EnvError where saved states are not N states of this environment from a pool like ours."""
    if len(state) != num_envs:
        raise EnvError(
            f"{len(state)} states were given for {num_envs} environments of {spec.name}; make a pool of {len(state)}"
        )
    for row in state:
        if row.get("name", spec.name) != spec.name:
            raise EnvError(f"the state belongs to {row['name']!r}, not to {spec.name!r}; build that one")
        if any(key not in row for key in keys):
            raise EnvError(
                f"the state of {spec.name} is from another kind of pool (it has {sorted(row)}, expected {list(keys)}); "
                f"make the kind of pool that it was saved from"
            )
