"""Where the jobs of a sweep run: processes of this machine, or tasks of Ray."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from worldmodel.errors import UserError
from worldmodel.sweep.plan import Job
from worldmodel.train.signals import GracefulExit

POLL = 0.1
"""Seconds between two looks at who has ended."""

Done = Callable[[Job, int], None]
"""Told of every job that ended, with its exit code."""


class Engine(Protocol):
    """Runs jobs; a signal lets those under way save themselves and begins no more."""

    def run(self, jobs: Sequence[Job], done: Done) -> int:
        """0, or the exit code that belongs to the signal that ended it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Local:
    """Processes of this machine, ``parallel`` at a time; where there are GPUs, each takes the next one."""

    parallel: int = 1

    def run(self, jobs: Sequence[Job], done: Done) -> int:
        waiting, running = deque(jobs), dict[int, tuple[Job, subprocess.Popen[bytes]]]()
        gpus, is_told = _gpus(), False
        with GracefulExit() as interrupted:
            while waiting or running:
                if interrupted.requested is not None and not is_told:
                    is_told = True
                    waiting.clear()
                    for _, process in running.values():
                        process.terminate()
                for slot in range(self.parallel):
                    if waiting and slot not in running:
                        job = waiting.popleft()
                        gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {}
                        running[slot] = job, begin(job, gpu)
                for slot, (job, process) in list(running.items()):
                    code = process.poll()
                    if code is not None:
                        del running[slot]
                        done(job, code)
                if running:
                    time.sleep(POLL)
        return interrupted.exit_code


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Tasks of a Ray cluster (``RAY_ADDRESS``), or of one that is started here; all nodes see the folders' disk.

    A task whose node is lost is begun again elsewhere, and goes on from its newest checkpoint.
    """

    cpus: float = 1.0
    """Of each job."""
    gpus: float = 0.0
    retries: int = 3

    def run(self, jobs: Sequence[Job], done: Done) -> int:
        ray = _import_ray()
        ray.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True, log_to_driver=False)
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)(execute)
        under_way: dict[Any, Job] = {task.remote(job, str(Path.cwd())): job for job in jobs}
        with GracefulExit() as interrupted:
            is_told = False
            while under_way:
                if interrupted.requested is not None and not is_told:
                    is_told = True
                    for reference in under_way:
                        ray.cancel(reference)
                ended, _ = ray.wait(list(under_way), timeout=POLL)
                for reference in ended:
                    job = under_way.pop(reference)
                    try:
                        code = int(ray.get(reference))
                    except ray.exceptions.RayError:  # cancelled, or lost more often than ``retries``
                        code = 128 + signal.SIGTERM if is_told else 1
                    done(job, code)
        return interrupted.exit_code


def begin(job: Job, variables: dict[str, str], cwd: str = ".") -> subprocess.Popen[bytes]:
    """Start a job's process, in a session of its own: a Ctrl-C reaches it by way of who waits for it, and once.

    Args: cwd: what the job's folder is relative to.
    """
    log_file = Path(cwd) / job.log
    log_file.parent.mkdir(parents=True, exist_ok=True)
    # threads that spin while they wait slow down whoever shares the machine
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **variables}
    with log_file.open("ab") as log:
        return subprocess.Popen(
            job.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=cwd,
            start_new_session=True,
        )


def execute(job: Job, cwd: str) -> int:
    """Run a job to its end, for a task of Ray; a task that is cancelled asks the run to save itself."""
    process = begin(job, {}, cwd)
    try:
        # Ray's interrupt is no signal: it waits until Python runs again, and does not end a wait for a process
        while (code := process.poll()) is None:
            time.sleep(POLL)
        return code
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise UserError("--on ray needs the package ray, which is not here; pip install 'worldmodel[ray]'") from error


def _gpus() -> list[str]:
    """Names of the GPUs that processes may be spread over."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    # what the driver lists; asking torch would take seconds and a CUDA context of this process
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
