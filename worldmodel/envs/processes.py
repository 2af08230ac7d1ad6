"""N environments in processes of their own: they run side by side, and one that crashes or hangs harms nobody else."""

from __future__ import annotations

import multiprocessing.util
import os
import pickle
import signal
import time
import weakref
from typing import Any

import numpy as np

from worldmodel.envs.channel import SharedMemory, pair
from worldmodel.envs.host import Failure, Ready, obs_arrays, obs_bytes
from worldmodel.envs.launch import launch
from worldmodel.envs.rows import Request, Rows, Say, explain_build
from worldmodel.errors import EnvError
from worldmodel.specs import EnvConfig, EnvStep

START_TIMEOUT = 120.0
"""Seconds that a new process has to build its environment, at least: a renderer's first start on a busy machine."""
_CLOSE_TIMEOUT = 2.0


class Worker:
    """One process and the channel to it. No method waits longer than it is told to."""

    def __init__(self, config: EnvConfig, pickled: bytes, row: int, delay: float) -> None:
        """Start the process; :meth:`wait_ready` comes next."""
        self._row = row
        self._number = 0
        self._channel, theirs = pair()
        payload = {"config": pickled, "index": row, "delay": delay}
        try:
            # A class of the main script is pickled by reference to "__main__".
            self._needs_main = b"__main__" in pickled
            self._process = launch(f"{config.name}#{row}", theirs, payload, needs_main=self._needs_main)
        except AssertionError as error:
            self._channel.close()
            raise EnvError(
                f"a pool of processes cannot be made inside a daemonic process ({error}); use the serial pool there"
            ) from error
        finally:
            theirs.close()
        self._started, self._delay = time.monotonic(), delay
        self.ready: Ready | Failure | None = None
        """None while the environment is being built."""

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def wait_ready(self, timeout: float) -> Ready | Failure:
        """What it built, or why not; the time counts from its start."""
        if self.ready is None:
            left = self._started + self._delay + timeout - time.monotonic()
            answer: Ready | Failure = self._receive("build", max(left, 0.0), timeout)
            self.ready = answer
            return answer
        return self.ready

    def attach(self, memory: SharedMemory, num_envs: int, timeout: float) -> None:
        """Let its observations go through ``memory``. A worker that is gone tells so at the next request."""
        failure = self.send("attach", num_envs, timeout) or self._receive("attach", timeout, timeout)
        if failure is None:
            try:
                self._channel.send_file(memory.descriptor, timeout)
            except OSError:
                self.kill()

    def send(self, verb: str, given: Any, timeout: float) -> Failure | None:
        """Ask for something; :meth:`receive` has the answer."""
        self._number += 1
        try:
            self._channel.send((self._number, verb, given), timeout)
        except OSError as error:
            # Gone, or it has not read for so long that the channel is full.
            return self._bury(verb, is_hung=isinstance(error, TimeoutError), timeout=timeout)
        return None

    def receive(self, verb: str, until: float, timeout: float) -> Any:
        """The answer to the last request, or a Failure."""
        return self._receive(verb, max(until - time.monotonic(), 0.0), timeout)

    def _receive(self, verb: str, left: float, timeout: float) -> Any:
        until = time.monotonic() + left
        while True:
            try:
                number, answer = self._channel.receive(max(until - time.monotonic(), 0.0))
            except TimeoutError:
                return self._bury(verb, is_hung=True, timeout=timeout)
            except (EOFError, OSError):
                return self._bury(verb, is_hung=False, timeout=timeout)
            if number == self._number:
                return answer
            # An answer to a request that was given up (Ctrl-C in the middle of a step).

    def _bury(self, verb: str, *, is_hung: bool, timeout: float) -> Failure:
        pid = self.pid
        if not is_hung:
            self._process.join(1.0)
        self._kill_group()  # also where only what the environment started is left
        code = self.kill()
        who = f"its worker (process {pid})"
        if is_hung:
            return Failure(sentence=f"{who} did not answer {verb!r} within {timeout:g} s and was killed", is_dead=True)
        hint = ""
        if verb == "build" and self._needs_main:
            hint = '; it is defined in the main script, which therefore needs `if __name__ == "__main__":`'
        return Failure(sentence=f"{who} ended with {_exit(code)} during {verb!r}{hint}", is_dead=True)

    def ask_to_close(self) -> None:
        """The polite way; :meth:`kill` follows."""
        try:
            if isinstance(self.ready, Ready):
                self._channel.send((-1, "close", None), 0.1)
            else:
                self._kill_group()
        except OSError:
            self._kill_group()

    def join(self, timeout: float) -> None:
        self._process.join(max(timeout, 0.0))

    def kill(self) -> int | None:
        """End the process now, if it still runs; its exit code."""
        if self._process.exitcode is None:
            self._kill_group()
            self._process.join(1.0)
        self._channel.close()
        return self._process.exitcode

    def _kill_group(self) -> None:
        """The worker and whatever its environment started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()  # it has not come to make its group


class ProcessRows(Rows):
    """One worker process for each environment. Observations come through shared memory, or through the channel where
    the machine has none."""

    def __init__(
        self, config: EnvConfig, num_envs: int, *, timeout: float = 60.0, max_restarts: int = 3, say: Say
    ) -> None:
        """Args: timeout in seconds, of every request; building may take :data:`START_TIMEOUT` if that is longer.

        Raises EnvError where an environment cannot be built.
        """
        self._timeout = timeout
        self._workers: list[Worker] = []
        self._refused: dict[int, Failure] = {}
        """Rows that could not even be asked."""
        self._memory: SharedMemory | None = None
        self._views: list[dict[str, np.ndarray]] = []
        try:
            self._pickled = pickle.dumps(config)
        except Exception as error:  # pickle raises what the object's own code raises
            raise EnvError(
                f"{type(config).__name__} cannot be sent to a worker process ({error}); define its class at the top "
                f"level of a module"
            ) from error
        super().__init__(config, num_envs, max_restarts=max_restarts, say=say)
        self._share()
        _OPEN.add(self)

    def _build(self) -> list[Ready]:
        try:
            for row in range(self._num_envs):
                self._workers.append(Worker(self._config, self._pickled, row, 0.0))
            answers = [worker.wait_ready(self._start_timeout) for worker in self._workers]
        except BaseException:
            self.close()
            raise
        for row, answer in enumerate(answers):
            if isinstance(answer, Failure):
                self.close()
                raise EnvError(explain_build(self._config, row, answer))
        return [answer for answer in answers if isinstance(answer, Ready)]

    @property
    def _start_timeout(self) -> float:
        return max(self._timeout, START_TIMEOUT)

    def _share(self) -> None:
        size = obs_bytes(self._spec, self._num_envs)
        try:
            self._memory = SharedMemory.new(size)
        except OSError as error:
            self._say(
                f"no shared memory ({size / 2**20:.1f} MiB) for the observations of {self._config.name}: {error}; "
                f"they go through pipes, which is slower"
            )
            return
        arrays = obs_arrays(self._spec, self._num_envs, self._memory.bytes)
        self._views = [{key: x[row, ...] for key, x in arrays.items()} for row in range(self._num_envs)]
        for worker in self._workers:
            worker.attach(self._memory, self._num_envs, self._timeout)

    def _ask(self, requests: list[Request]) -> None:
        self._refused = self._send([request for request in requests if not self._is_new(request)])

    def _answers(self, requests: list[Request]) -> list[Any]:
        # New workers come last: waiting for them must not cost the others.
        known, new = ([r for r in requests if self._is_new(r) == is_new] for is_new in (False, True))
        answers = self._receive(known, self._refused)
        answers |= self._receive(new, self._send(new))
        return [answers[row] for row, _, _ in requests]

    def _is_new(self, request: Request) -> bool:
        return self._workers[request[0]].ready is None

    def _send(self, requests: list[Request]) -> dict[int, Failure]:
        refused: dict[int, Failure] = {}
        for row, verb, given in requests:
            failure = self._make_ready(row) or self._workers[row].send(verb, given, self._timeout)
            if failure is not None:
                refused[row] = failure
        return refused

    def _receive(self, requests: list[Request], refused: dict[int, Failure]) -> dict[int, Any]:
        answers: dict[int, Any] = dict(refused)
        until = time.monotonic() + self._timeout
        for row, verb, _ in requests:
            if row not in answers:
                answer = self._workers[row].receive(verb, until, self._timeout)
                if isinstance(answer, EnvStep) and not answer.obs:
                    answer.obs = self._views[row]
                answers[row] = answer
        return answers

    def _make_ready(self, row: int) -> Failure | None:
        worker = self._workers[row]
        if worker.ready is None:
            ready = worker.wait_ready(self._start_timeout)
            if isinstance(ready, Ready) and ready.spec != self._spec:
                worker.kill()
                worker.ready = Failure(sentence=f"the new environment has another spec: {ready.spec}", is_dead=True)
            elif isinstance(ready, Ready) and self._memory is not None:
                worker.attach(self._memory, self._num_envs, self._timeout)
        return worker.ready if isinstance(worker.ready, Failure) else None

    def _renew(self, row: int, delay: float) -> None:
        self._workers[row].kill()
        self._workers[row] = Worker(self._config, self._pickled, row, delay)

    def close(self) -> None:
        """End all workers: politely within 2 seconds, else by force."""
        self._is_closed = True
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.ask_to_close()
        until = time.monotonic() + _CLOSE_TIMEOUT
        for worker in workers:
            worker.join(until - time.monotonic())
        for worker in workers:
            worker.kill()
        self._views = []
        if self._memory is not None:
            self._memory.close_descriptor()
            self._memory = None


_OPEN: weakref.WeakSet[ProcessRows] = weakref.WeakSet()


def _close_all() -> None:
    for rows in list(_OPEN):
        rows.close()


# At exit, multiprocessing joins its children: forever, if they are workers that nobody told to end. This comes before.
multiprocessing.util.Finalize(None, _close_all, exitpriority=100)


def _exit(code: int | None) -> str:
    if code is None:
        return "an exit code that is not known yet"
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
