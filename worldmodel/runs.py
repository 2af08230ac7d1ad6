"""The composition root: from a Run and a folder to pool, agent, replay, trainer."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldmodel import config as configs
from worldmodel.config import Run
from worldmodel.data.formats import absolute, open_dataset
from worldmodel.data.tasks import of_tasks
from worldmodel.envs.pool import make_pool
from worldmodel.errors import DivergenceError, EnvError, UserError
from worldmodel.protocols import Agent, EnvPool, Replay, Wants
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.mixed import MixedReplay, split
from worldmodel.replay.offline import fill_replay
from worldmodel.replay.ring import RingReplay, make_replay
from worldmodel.specs import evaluation_env
from worldmodel.storage import beginning, replacing
from worldmodel.train.checkpoint import Checkpoint, Checkpoints
from worldmodel.train.compile import Mode, accelerate
from worldmodel.train.display import Display
from worldmodel.train.distributed import Alone, Place, begin_alike, follow, join
from worldmodel.train.evaluate import Evaluator, Scores
from worldmodel.train.evaluate import evaluate as evaluate_agent
from worldmodel.train.hold import hold_all
from worldmodel.train.lock import RunLock
from worldmodel.train.log import BEGINNING, Logger
from worldmodel.train.loop import Output, Summary, Trainer, adopt_agent, restore_agent
from worldmodel.train.manifest import provenance
from worldmodel.train.memory import keep_freed_memory
from worldmodel.train.restore import MANIFEST
from worldmodel.train.signals import GracefulExit
from worldmodel.train.threads import tune_threads
from worldmodel.trained import Trained

Say = Callable[[str], None]

_PART = beginning(configs.CONFIG)
"""How names of half-written ones begin."""


def start(
    run: Run, run_dir: Path, *, preset: str = "", preset_args: dict[str, Any] | None = None, live: bool | None = None
) -> Summary:
    """Train in a new folder. A run that fails before it has anything to keep leaves nothing there.

    The same run, given again to the folder in which it was killed before its first checkpoint, begins afresh.

    Raises: UserError when the folder holds anything else.
    """
    run_dir = Path(run_dir)
    run = replace(run, data=absolute(run.data), init=str(Path(run.init).resolve()) if run.init else "")
    if (place := Place.find()) and place.rank:
        return _follow(run, place)
    again = _may_begin_again(run_dir, run)
    with _new_folder(run_dir), RunLock(run_dir), _false_start(run_dir):
        document = {
            "id": uuid.uuid4().hex[:16],
            "preset": preset, "preset_args": preset_args or {}, "run": configs.to_json(run), "provenance": provenance(),
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        }
        _write_document(run_dir, document)
        return _train(run, run_dir, live=live, again=again)


def resume(
    run_dir: Path, *, change: Callable[[Run], Run] = lambda run: run, live: bool | None = None,
    allow: Sequence[str] = (),
) -> Summary:
    """Go on from the newest valid checkpoint of a run folder.

    Args:
        change: gives the run with allowed changes (more steps, other cadences); others are refused. What it changes
            stays: config.json holds it from then on.
        allow: modules outside of this package that its configuration may name.
    Raises: CheckpointError, UserError.
    """
    run_dir = Path(run_dir)
    old = read_run(run_dir, allow=allow)
    run = change(old)
    configs.validate_resume(old, run)
    if (place := Place.find()) and place.rank:
        return _follow(run, place)

    def restart(say: Say) -> Checkpoint:
        # only what can go on is written down: the device is there by now, and a valid checkpoint too
        checkpoint = _checkpoints(run_dir).latest(on_skip=say)
        if run != old:
            _write_document(run_dir, configs.read_document(run_dir) | {"run": configs.to_json(run)})
        return checkpoint

    with RunLock(run_dir):
        return _train(run, run_dir, live=live, restart=restart)


def read_run(run_dir: Path, *, allow: Sequence[str] = ()) -> Run:
    """The Run of a folder; ``allow`` names modules outside of this package that it may use.

    Raises: UserError when it is not a run folder, CheckpointError when its configuration is damaged.
    """
    return configs.from_json(configs.read_document(run_dir)["run"], allow=allow)


def load(
    path: Path | str, *, device: str = "auto", say: Say = lambda text: None, allow: Sequence[str] = (),
    change: Callable[[Run], Run] = lambda run: run,
) -> Trained:
    """The agent of a run folder with the weights of its newest valid checkpoint, or of one checkpoint in it.

    Args:
        path: a run folder, or a folder in its ``checkpoints``. Every file is compared with its SHA-256.
        device: "cpu", "cuda", or "auto" for the GPU where there is one.
        say: told one sentence for each damaged checkpoint that is passed over.
        allow: modules outside of this package that its configuration may name; they are imported.
        change: gives the run with another agent that takes the same checkpoint, one that plans for instance.
    Raises: UserError, CheckpointError, EnvError.
    """
    path = Path(path)
    run_dir = path.resolve().parent.parent if (path / MANIFEST).is_file() else path
    run = change(read_run(run_dir, allow=allow))
    checkpoint = _source(path, say)
    env = run.env.build(0)
    try:
        spec = env.spec
    finally:
        env.close()
    agent = run.agent.build(spec, device=pick_device(device), seed=run.seed)
    restore_agent(agent, checkpoint)
    return Trained(agent=agent, run=run, spec=spec, checkpoint=checkpoint)


def evaluate(
    run_dir: Path, *, episodes: int = 100, explore: bool = False, seed: int = 10_000, device: str = "auto",
    say: Say = lambda text: None, allow: Sequence[str] = (), change: Callable[[Run], Run] = lambda run: run,
) -> tuple[Scores, Trained]:
    """Evaluate the newest valid checkpoint; an evaluation needs nothing but the folder.

    Args: change: as in :func:`load`.
    """
    loaded = load(run_dir, device=device, say=say, allow=allow, change=change)
    prepare_cpu(loaded.run)
    pool = make_pool(evaluation_env(loaded.run.env), min(episodes, loaded.run.train.eval_envs), on_event=say)
    try:
        return evaluate_agent(loaded.agent, pool, episodes=episodes, explore=explore, seed=seed, film=True), loaded
    finally:
        pool.close()


def pick_device(name: str) -> torch.device:
    """"auto" is the GPU where there is one. Raises: UserError when CUDA was asked for and is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda was asked for, but torch sees no GPU here; use --device cpu, or see `worldmodel doctor`"
        )
    return torch.device(name)


def prepare_cpu(run: Run) -> int:
    """Have freed memory kept, and set torch's CPU threads: the run's number, or every core this process may use."""
    keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = run.train.threads or cores
    torch.set_num_threads(threads)
    return threads


def _write_document(run_dir: Path, document: dict[str, Any]) -> None:
    """Write config.json so that at every moment there is the old one or the new one, whole."""
    with contextlib.suppress(OSError):
        for left in run_dir.glob(f"{_PART}*"):  # by a process that was killed here
            left.unlink()
    path, advice = run_dir / configs.CONFIG, "free some space or make the folder writable"
    with replacing(path, otherwise=advice) as file:
        file.write((json.dumps(document, indent=2) + "\n").encode())


def _checkpoints(run_dir: Path, keep: int = 2) -> Checkpoints:
    """Those of the run that config.json describes; what another run left there is passed over."""
    return Checkpoints(run_dir / "checkpoints", keep=keep, run_id=str(configs.read_document(run_dir).get("id", "")))


def _may_begin_again(run_dir: Path, run: Run) -> bool:
    """Whether the folder holds this very run, ended before its first checkpoint; False for a new or empty folder.

    Raises: UserError for a folder that holds anything else.
    """
    try:
        names = {path.name for path in run_dir.iterdir() if not path.name.startswith(_PART)} - {"lock"}
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"cannot use {run_dir} as a run folder: {error.strerror}; give another --run-dir") from error
    if not names:
        return False
    if configs.CONFIG not in names or _checkpoints(run_dir).candidates():
        raise UserError(
            f"{run_dir} exists and is not empty; go on with `worldmodel resume {run_dir}` or give another --run-dir"
        )
    if configs.read_document(run_dir)["run"] != configs.to_json(run):
        raise UserError(
            f"{run_dir} holds a run with other settings, which ended before its first checkpoint; delete the folder or "
            f"give another --run-dir"
        )
    return True


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """Make a folder, and remove it again where what fills it fails and leaves it empty."""
    is_ours = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {path}: {error.strerror}; give a writable --run-dir") from error
    try:
        yield
    except BaseException:
        if is_ours and not any(path.iterdir()):
            path.rmdir()
        raise


@contextlib.contextmanager
def _false_start(run_dir: Path) -> Iterator[None]:
    """What fails before it has a result or a checkpoint is forgotten, so that the same command can be given again."""
    try:
        yield
    except BaseException:
        results = [run_dir / "metrics.jsonl", run_dir / "scores.jsonl"]
        if not (run_dir / "checkpoints").exists() and not any(x.exists() and x.stat().st_size for x in results):
            for path in (run_dir / configs.CONFIG, *results):
                path.unlink(missing_ok=True)
        raise


def _tune_threads(run: Run, agent: Agent[Any], pool: EnvPool, cores: int, checkpoint: Checkpoint | None) -> int:
    """The number that updates are fastest with; a run that goes on keeps its own, for rounding depends on it."""
    if checkpoint is not None:
        threads = min(int(checkpoint.document("trainer")["threads"]), cores)
        torch.set_num_threads(threads)
        return threads
    return tune_threads(agent, pool.spec, batch_size=run.replay.batch_size, length=run.replay.length, cores=cores)


def _train(
    run: Run, run_dir: Path, *, live: bool | None, restart: Callable[[Say], Checkpoint] | None = None,
    again: bool = False,
) -> Summary:
    place, device = Place.find(), pick_device(run.device)
    mode = _mode(run, place, device)
    threads = prepare_cpu(run)
    with contextlib.ExitStack() as stack:
        display = Display(total_steps=run.train.steps, title=f"{run.env.name} · {device}", live=live)
        stack.callback(display.close)
        checkpoints = _checkpoints(run_dir, keep=run.train.keep_checkpoints)
        checkpoints.cleanup()
        checkpoint = restart(display.message) if restart else None
        document = configs.to_json(run)
        logger = stack.enter_context(
            contextlib.closing(Logger(run_dir, wandb=run.train.wandb, config=document, warn=display.message))
        )
        # offline it is there for its spec alone
        count, kind = (1, "serial") if run.is_offline else (run.train.num_envs, run.train.pool)
        pool: EnvPool = stack.enter_context(
            contextlib.closing(make_pool(run.env, count, kind=kind, on_event=display.message))
        )
        agent = run.agent.build(pool.spec, device=device, seed=run.seed)
        if checkpoint is None and not run.init and isinstance(agent, Wants) and agent.wanted:
            raise UserError(f"{agent.wanted}; name the run that learned it with --init RUN")
        if not run.train.threads and device.type == "cpu":
            threads = _tune_threads(run, agent, pool, threads, checkpoint)
        compiled = accelerate(agent, mode, device)
        if checkpoint is None and run.init:
            adopt_agent(agent, _source(Path(run.init), display.message))
        replay, data = _make_replay(run, pool, agent, device, run_dir)
        if checkpoint is None and data is not None:
            hold_all(agent, data, more=not run.is_offline)
        eval_envs = min(run.train.eval_envs, run.train.eval_episodes)
        evaluator = Evaluator(
            make_pool=lambda: make_pool(evaluation_env(run.env), eval_envs, on_event=display.message),
            episodes=run.train.eval_episodes, seed=run.seed + 10_000,
        )
        stack.callback(evaluator.close)
        meta = {
            "config": configs.config_hash(run), "device": str(device), "threads": threads, "compile": compiled,
            "seed": run.seed,
        }
        # before signals are caught: what comes while processes wait for one another ends them at once
        crew = Alone() if place is None else stack.enter_context(join(place, device))
        trainer = Trainer(
            agent=agent, pool=pool, replay=replay, evaluator=evaluator,
            output=Output(logger=logger, display=display, checkpoints=checkpoints, meta=meta),
            config=run.train, batch_steps=run.replay.batch_size * run.replay.length, seed=run.seed,
            interrupted=stack.enter_context(GracefulExit()), crew=crew,
            offline=run.is_offline,
        )
        if again:
            logger.rewind(BEGINNING)
            display.message(f"{run_dir}: this run ended before its first checkpoint and begins afresh")
        if checkpoint is not None:
            display.message(f"{checkpoint.path}: {trainer.load(checkpoint)}")
        if place is not None:
            begin_alike(agent.state_dict())
            display.message(f"{place.size} processes share every batch")
        try:
            summary = trainer.run()
            crew.end()
            return summary
        except EnvError:
            trainer.save_broken()
            raise
        except DivergenceError as error:
            raise DivergenceError(f"{error}; {trainer.dump()}") from error
        except RuntimeError:
            crew.explain()  # as long as signals are caught: torchrun has asked the processes that are left to end
            raise


def _make_replay(
    run: Run, pool: EnvPool, agent: Agent[Any], device: torch.device, run_dir: Path
) -> tuple[Replay, RingReplay | None]:
    """What is learned from, and the part of it that is data."""
    def lived(config: ReplayConfig) -> RingReplay:
        return make_replay(
            config, pool.spec, agent.memory_spec, pool.num_envs, device=device, seed=run.seed, scratch=run_dir
        )

    if not run.data:
        return lived(run.replay), None
    mine, theirs = (run.replay, None) if run.is_offline else split(run.replay)
    if pool.spec.tasks:
        dataset = of_tasks([open_dataset(part) for part in run.data.split(",")], pool.spec)
    else:
        dataset = open_dataset(run.data)
    data = fill_replay(
        dataset, mine, pool.spec, agent.memory_spec, device=device, seed=run.seed, scratch=run_dir
    )
    return (data if theirs is None else MixedReplay(data, lived(theirs))), data


def _source(path: Path, say: Say) -> Checkpoint:
    """The newest valid checkpoint of a run folder, or the one that ``path`` is."""
    is_checkpoint = (path / MANIFEST).is_file()
    checkpoints = _checkpoints(path.resolve().parent.parent if is_checkpoint else path)
    return checkpoints.open(path) if is_checkpoint else checkpoints.latest(on_skip=say)


def _mode(run: Run, place: Place | None, device: torch.device) -> Mode:
    """How updates run; where processes share batches, plainly, and each on the GPU of its number."""
    if place is None:
        return run.train.compile
    if run.train.compile not in ("auto", "eager"):
        raise UserError(
            f"--train.compile {run.train.compile} does not go together with several processes (WORLD_SIZE="
            f"{place.size}) yet; use --train.compile eager"
        )
    if run.data or run.init:
        raise UserError("--data and --init do not go together with several processes yet; use one process")
    if run.train.min_updates:
        raise UserError(
            f"--train.min-updates {run.train.min_updates} does not go together with several processes (WORLD_SIZE="
            f"{place.size}) yet; learn from what was explored in one process, then go on with several"
        )
    if device.type == "cuda":
        torch.cuda.set_device(place.local)
    return "eager"


SEEDS = 100_000
"""Between the seeds of two ranks."""


def _follow(run: Run, place: Place) -> Summary:
    """What ranks other than 0 do: their environments and replay are their own, and nothing of them is kept."""
    device = pick_device(run.device)
    _mode(run, place, device)
    prepare_cpu(run)
    seed, start = run.seed + SEEDS * place.rank, time.monotonic()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(contextlib.closing(make_pool(run.env, run.train.num_envs, kind=run.train.pool)))
        agent = run.agent.build(pool.spec, device=device, seed=seed)
        replay = make_replay(run.replay, pool.spec, agent.memory_spec, pool.num_envs, device=device, seed=seed)
        stack.enter_context(GracefulExit())  # a signal to all is answered by rank 0
        crew = stack.enter_context(join(place, device))
        begin_alike(agent.state_dict())
        updates = follow(agent, pool, replay, crew, seed)
    return Summary(env_steps=0, updates=updates, reason="followed", seconds=time.monotonic() - start)
