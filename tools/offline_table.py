"""Every offline version of dyna on sets of one's own making, in one command that can be stopped and given again.

    python tools/offline_table.py --folder RUNS/table --minutes 60
    python tools/offline_table.py --folder RUNS/table --tasks reacher --sets mixed --only bc cql --seeds 0

For each task SAC learns online, small; its checkpoints give the sets: "random" actions, "medium" (the one whose return
is nearest to a third of the way from random to the best), "expert" (the best), each sampled from the policy, and
"mixed", a third of each. Then every version learns from every set, for as many updates and with as small networks as
all others, and is evaluated by mode. A score is the mean of the last evaluations, never the best one, as
100 (R - random) / (expert - random), the two being mean returns of these sets. Numbers of algorithms are those of
their authors, chosen for other tasks, and none was chosen by looking at returns here.

Seeds are the outermost loop, so that what is done when time is up is spread evenly. The JSON file is both the result
and what a later call goes on from; a cell that fails is noted and the others go on. The table is written beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from worldmodel import collect, runs
from worldmodel.agents.dyna.agent import DynaConfig
from worldmodel.config import Run
from worldmodel.configs.dyna import Version, agent
from worldmodel.data.episodes import Dataset
from worldmodel.data.formats import open_dataset, write_dataset
from worldmodel.data.mix import mix
from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.pool import make_pool
from worldmodel.models.ensemble import Ends
from worldmodel.protocols import EnvPool
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.offline import fill_replay
from worldmodel.train.config import TrainConfig
from worldmodel.train.evaluate import evaluate
from worldmodel.train.hold import hold_all
from worldmodel.train.manifest import provenance
from worldmodel.train.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = 40
"""Of a behaviour policy, evenly spaced: "medium" and "expert" are two of them."""
SETS = ("mixed", "medium", "expert", "random")
ONLINE = ("sac", "redq", "mbpo", "ftfl", "coplanner")
"""Versions that are not meant for data alone: on request."""
OFFLINE = tuple(name for name in get_args(Version) if name not in ONLINE)


@dataclass(frozen=True, kw_only=True)
class Task:
    """An environment, and what its behaviour policies take."""

    env: Any
    ends: Ends = "never"
    decisions: int = 10_000
    """Of SAC, with an update each."""


TASKS = {
    "double-pendulum": Task(
        env=GymConfig(id="InvertedDoublePendulum-v5"), ends="inverted_double_pendulum", decisions=6000
    ),
    "reacher": Task(env=GymConfig(id="Reacher-v5")),
    "cartpole": Task(env=DMCConfig(task="cartpole_swingup", obs="proprio", repeat=4)),
    "pendulum": Task(env=GymConfig(id="Pendulum-v1")),
    "hopper": Task(env=GymConfig(id="Hopper-v5"), ends="hopper", decisions=300_000),
    "halfcheetah": Task(env=GymConfig(id="HalfCheetah-v5"), decisions=300_000),
}
DEFAULT = ("reacher", "double-pendulum", "cartpole")


# Data


def behave(task: Task, folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """Checkpoints of SAC: "medium" and "expert"."""
    run_dir = folder / "sac"
    if task.decisions not in (score := sampled(run_dir)):
        config = small("sac", task, args)
        every = max(1, task.decisions // CHECKPOINTS)
        run = Run(
            env=task.env, agent=replace(config, value=replace(config.value, norm="layer"), recent=task.decisions),
            replay=ReplayConfig(capacity=task.decisions + 1000, batch_size=2, length=2), device="cpu",
            train=TrainConfig(
                steps=task.decisions, train_ratio=4, eval_every=every, eval_episodes=5, eval_envs=5, threads=1,
                checkpoint_steps=every, keep_checkpoints=99, log_steps=every,
            ),
        )
        if (run_dir / "checkpoints").exists():
            runs.resume(run_dir, live=False)
        else:  # what was stopped before its first checkpoint begins afresh
            shutil.rmtree(run_dir, ignore_errors=True)
            runs.start(run, run_dir, live=False)
        if task.decisions not in (score := sampled(run_dir)):
            raise SystemExit("stopped before the behaviour policies were there; the same command goes on")
    floor = returns(open_dataset(folder / "random")).mean()
    best = max(score, key=lambda step: score[step])
    third = floor + (score[best] - floor) / 3
    medium = min((step for step in score if step <= best), key=lambda step: abs(score[step] - third))
    return {name: run_dir / "checkpoints" / f"{step:012d}" for name, step in (("medium", medium), ("expert", best))}


def sampled(run_dir: Path) -> dict[int, float]:
    """Returns of samples of a run's policy, by decisions."""
    path = run_dir / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {x["step"]: x["return"] for x in lines if x["kind"] == "eval_sampled"}


def returns(dataset: Dataset) -> np.ndarray:
    """(episodes,)."""
    return np.array([episode.reward.sum() for episode in dataset])


def make_sets(name: str, folder: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Write the four sets of a task where they are not there yet; their episodes, transitions and mean returns."""
    task = TASKS[name]

    def write(kind: str, make: Any) -> None:
        if not (folder / kind).exists():
            # as many whole episodes as hold the transitions that are asked for
            length = np.mean([len(episode) for episode in make(8)])
            data = make(max(8, round(args.transitions / length)))
            write_dataset(folder / kind, "dreamer", data.header, data)

    write("random", lambda count: collect.play(
        task.env, collect.random_policy(collect.action_of(task.env)), episodes=count, seed=1
    ))
    for kind, checkpoint in behave(task, folder, args).items():
        write(kind, lambda count, at=checkpoint: collect.play_agent(
            at, episodes=count, explore=True, seed=2, device="cpu"
        ))
    if not (folder / "mixed").exists():
        parts = [open_dataset(folder / kind) for kind in ("random", "medium", "expert")]
        smallest = min(sum(len(episode) for episode in part) for part in parts)
        data = mix(parts, [1 / 3] * 3, steps=min(args.transitions, 3 * smallest))
        write_dataset(folder / "mixed", "dreamer", data.header, data)
    return {kind: described(open_dataset(folder / kind)) for kind in SETS}


def described(dataset: Dataset) -> dict[str, float]:
    """Episodes, transitions, mean and standard deviation of returns."""
    got = returns(dataset)
    return {
        "episodes": len(got), "transitions": sum(len(episode) for episode in dataset),
        "return": round(float(got.mean()), 2), "std": round(float(got.std()), 2),
    }


# Agents


def small(version: Version, task: Task, args: argparse.Namespace) -> DynaConfig:
    """A version with networks, rounds of dreams and schedules that fit a small number of updates; what each costs in
    proportion stays its authors'."""
    c = agent(version, ends=task.ends)

    def narrow(units: tuple[int, ...]) -> tuple[int, ...]:
        return (args.units,) * len(units)

    changes: dict[str, Any] = {
        "policy": replace(c.policy, units=narrow(c.policy.units)),
        "value": replace(c.value, units=narrow(c.value.units)), "batch_size": args.batch,
        "lr": args.lr, "policy_lr": args.lr, "recent": 2 * args.transitions,
        "first": min(1000, args.transitions // 2), "clone_first": args.updates // 10 if c.clone_first else 0,
        "policy_lr_ends": args.updates if c.policy_lr_ends else 0,
    }
    if hasattr(c.rule, "units"):
        changes["rule"] = replace(c.rule, units=narrow(c.rule.units))
    if c.model is not None:
        rounds = min(c.model.max_rounds, args.rounds)
        changes["model"] = replace(c.model, units=narrow(c.model.units), max_rounds=rounds)
        often = max(1, args.updates // 40)
        changes["branch"] = replace(c.branch, rows=max(8, c.branch.rows // 50), every=often)
        if c.adversary.every:
            changes["adversary"] = replace(c.adversary, every=often, steps=max(1, often // 4), rows=args.batch)
    return replace(c, **changes)


def learn(version: Version, name: str, kind: str, seed: int, pool: EnvPool, args: argparse.Namespace) -> dict[str, Any]:
    """One cell: evaluations, and what the agent believed in the end."""
    start, device = time.process_time(), torch.device("cpu")
    learner = small(version, TASKS[name], args).build(pool.spec, device=device, seed=seed)
    data = open_dataset(args.folder / name / kind)
    replay = fill_replay(data, ReplayConfig(batch_size=1, length=2), pool.spec, {}, device=device, seed=seed)
    hold_all(learner, replay)
    batch, spent = replay.sample(), 0.0
    often = max(1, args.updates // 10)
    found: list[dict[str, Any]] = []
    for update in range(1, args.updates + 1):
        metrics = learner.learn(batch).metrics
        if update % often and update != args.updates:
            continue
        point: dict[str, Any] = {"updates": update}
        for key in ("value/mean", "actor/entropy", "loss/value", "skipped"):
            if key in metrics:
                point[key] = round(float(metrics[key]), 4)
        if update > args.updates - args.last * often:
            before = time.process_time()
            scores = evaluate(learner, pool, episodes=args.episodes, explore=False, seed=10_000 + seed)
            point["returns"] = [round(x, 2) for x in scores.returns]
            spent += time.process_time() - before
        found.append(point)
    last = [np.mean(point["returns"]) for point in found if "returns" in point]
    return {
        "return": round(float(np.mean(last)), 3), "curve": found,
        "cpu_seconds": [round(time.process_time() - start - spent, 1), round(spent, 1)],
    }


# The table


def cells(args: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Task, set, version, seed; what matters most comes first."""
    for seed in args.seeds:
        for kind in args.sets:
            for version in args.only:
                for name in args.tasks:
                    yield name, kind, version, seed


def scored(found: dict[str, Any], name: str, kind: str, version: str) -> list[float]:
    """Normalised scores of a cell of the table, by seed."""
    sets = found["sets"][name]
    low, high = sets["random"]["return"], sets["expert"]["return"]
    got = [found["cells"].get(f"{name}/{kind}/{version}/{seed}", {}) for seed in found["settings"]["seeds"]]
    return [100 * (cell["return"] - low) / (high - low) for cell in got if "return" in cell]


def markdown(found: dict[str, Any]) -> str:
    """A page: for each task a table, mean and standard deviation over seeds (how many), * below cloning on the mixed
    set."""
    settings = ", ".join(f"{key} {value}" for key, value in found["settings"].items() if key != "seeds")
    done = sum("return" in cell for cell in found["cells"].values())
    lines = [
        "# Offline agents", "", f"Written by `tools/offline_table.py` ({settings}); {done} cells are done.",
        "Scores are 100 (R - random) / (expert - random), the mean of the last evaluations by mode: mean and standard",
        "deviation over seeds, and how many; * is below behaviour cloning on the mixed set.", "",
    ]
    names = [x for x in TASKS if x in found["sets"]]
    for name in names:
        sets = found["sets"][name]
        lines += [f"## {name}: {TASKS[name].env.name}", ""]
        means = ", ".join(f"{kind} {sets[kind]['return']:.1f}" for kind in SETS)
        lines += [f"Mean returns of the data: {means}.", ""]
        lines += [f"| version | {' | '.join(SETS)} |", "|---|" + "---|" * len(SETS)]
        cloned = scored(found, name, "mixed", "bc")
        for version in get_args(Version):
            row = [said(found, name, kind, version, cloned) for kind in SETS]
            if any(row):
                lines.append(f"| {version} | {' | '.join(cell or 'not run' for cell in row)} |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def said(found: dict[str, Any], name: str, kind: str, version: str, cloned: list[float]) -> str:
    """One cell of the table; empty where nothing was run."""
    got = scored(found, name, kind, version)
    failed = sum(
        "failed" in cell for key, cell in found["cells"].items() if key.startswith(f"{name}/{kind}/{version}/")
    )
    text = f"{np.mean(got):.0f} ± {np.std(got):.0f} ({len(got)})" if got else ""
    if got and kind == "mixed" and cloned and np.mean(got) < np.mean(cloned):
        text += " *"
    return " ".join(x for x in (text, f"failed ({failed})" if failed else "") if x)


def write(out: Path, found: dict[str, Any]) -> None:
    """Both files; the JSON appears whole or not at all."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(out)
    out.with_suffix(".md").write_text(markdown(found))


def main(words: list[str] | None = None) -> int:
    args = parsed(words)
    began = time.monotonic()
    torch.set_num_threads(1)
    keep_freed_memory()
    settings = {key: getattr(args, key) for key in (
        "updates", "units", "batch", "lr", "rounds", "transitions", "episodes", "last"
    )}
    found: dict[str, Any] = {"sets": {}, "cells": {}}
    if args.out.exists():
        found = json.loads(args.out.read_text())
        was = {key: found["settings"][key] for key in settings}
        if was != settings:
            changed = ", ".join(f"{key} {was[key]}, now {x}" for key, x in settings.items() if was[key] != x)
            print(f"{args.out} holds cells of other settings ({changed}); give another --out", file=sys.stderr)
            return 2
    command = shlex.join(["python", "tools/offline_table.py", *(sys.argv[1:] if words is None else words)])
    seeds = sorted({*found.get("settings", {}).get("seeds", []), *args.seeds})
    found |= {
        "commands": [*(x for x in found.get("commands", []) if x != command), command],
        "settings": settings | {"seeds": seeds},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": 1}, "provenance": provenance(),
    }
    for name in args.tasks:
        made = make_sets(name, args.folder / name, args)
        if found["sets"].setdefault(name, made) != made:
            message = f"{args.out} holds cells of other sets of {name} than {args.folder}; give another --out"
            print(message, file=sys.stderr)
            return 2
        print(name, found["sets"][name], flush=True)
        write(args.out, found)
    pools = functools.cache(lambda name: make_pool(TASKS[name].env, args.episodes, kind="serial"))
    left = 0
    for name, kind, version, seed in cells(args):
        key = f"{name}/{kind}/{version}/{seed}"
        if "return" in (cell := found["cells"].get(key, {})) or ("failed" in cell and not args.retry):
            continue
        if time.monotonic() - began > 60 * args.minutes:
            left += 1
            continue
        try:
            cell = learn(cast(Version, version), name, kind, seed, pools(name), args)
        except Exception as error:  # one cell must not cost the others
            cell = {"failed": f"{type(error).__name__}: {error}"}
        found["cells"][key] = cell | {"commit": found["provenance"]["commit"]}
        print(key, cell.get("failed", f"{cell.get('return')} {cell.get('cpu_seconds')}"), flush=True)
        write(args.out, found)
    print(markdown(found))
    if left:
        print(f"{left} cells are left; the same command goes on")
    return 0


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of runs and sets; what is there is used")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "offline_table.json")
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULT), choices=list(TASKS))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--only", nargs="+", default=list(OFFLINE), choices=get_args(Version), help="versions")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no cell begins")
    parser.add_argument("--retry", action="store_true", help="cells that failed")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--units", type=int, default=64, help="of every hidden layer")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="of all that a version learns")
    parser.add_argument("--rounds", type=int, default=30, help="of fitting a model, at most")
    parser.add_argument("--transitions", type=int, default=10_000, help="of each set, about")
    parser.add_argument("--episodes", type=int, default=5, help="of an evaluation")
    parser.add_argument("--last", type=int, default=3, help="evaluations averaged, a tenth of the updates apart")
    return parser.parse_args(words)


if __name__ == "__main__":
    # nothing here is drawn; where there is no display, MuJoCo's second try at it ends the process
    os.environ.setdefault("MUJOCO_GL", "off")
    sys.exit(main())
