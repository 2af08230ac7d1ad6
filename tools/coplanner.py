"""COPlanner beside plain Dreamer on Glide against the wind, with a region that random play never visits.

    python tools/coplanner.py --folder RUNS --seeds 0 --select none acting both --steps 12000

Trains ``coplanner --task glide --env.course upwind`` with each ``--select`` and seed (what is finished is kept), then
asks every checkpoint how unsure it is along an expert's way from the left of the room to the right. Writes
docs/results/coplanner_glide.json with curves, the processor time of each run, commit, machine and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import runs, tree
from worldmodel.envs.toys.base import ToyConfig, expert
from worldmodel.rng import Stream
from worldmodel.train.manifest import provenance

ROOT = Path(__file__).resolve().parent.parent
EVERY = 2000
"""Decisions between evaluations, and between checkpoints."""
PLACES = (0.0, 0.2, 0.5, 1.01)
"""Bounds of left (where episodes begin), middle and right (where targets lie), in rooms."""


def train(folder: Path, select: str, seed: int, steps: int, extra: list[str]) -> None:
    """One run, and the processor seconds it took beside it."""
    run_dir = folder / f"{select}-{seed}"
    if (run_dir / "cost.json").exists():
        return
    command = [
        sys.executable, "-m", "worldmodel", "train", "coplanner", "--task", "glide", "--select", select,
        "--env.course", "upwind", "--seed", str(seed), "--run-dir", str(run_dir), "--train.steps", str(steps),
        "--train.eval-every", str(EVERY), "--train.eval-episodes", "50", "--train.checkpoint-steps", str(EVERY),
        "--train.keep-checkpoints", "99", *extra,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / f"{select}-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (run_dir / "cost.json").write_text(json.dumps({"cpu_seconds": round(seconds, 1)}) + "\n")


def unsure(checkpoint: Path, episodes: int = 32) -> dict[str, float]:
    """Mean raw disagreement about the steps of an expert, by where the disc is."""
    agent: Any = runs.load(checkpoint, device="cpu").agent
    model = agent.model
    toys = ToyConfig(task="glide", course="upwind").build_batch(episodes)
    step, state = toys.reset(77), model.initial(episodes)
    previous, found, places = torch.zeros(episodes, 2), [], []
    with torch.no_grad(), Stream(seed=0):
        for _ in range(toys.spec.max_steps - 1):
            obs = {key: torch.from_numpy(x).unsqueeze(1) for key, x in step.obs.items()}
            seen = model.observe(state, obs, previous.unsqueeze(1), torch.from_numpy(step.is_first).unsqueeze(1))
            state = tree.index(seen, (slice(None), 0))
            action = expert(toys)
            previous = torch.from_numpy(action)
            found.append((model.disagreement(state, previous) * model.ensemble.unit()).numpy())
            places.append(toys.task.state["place"][:, 0].copy())
            step = toys.step(action)
    at, spread = np.concatenate(places), np.concatenate(found)
    names = ("left", "middle", "right")
    return {
        name: round(float(spread[(at >= low) & (at < high)].mean()), 6)
        for name, low, high in zip(names, PLACES, PLACES[1:])
    }


def result(folder: Path, select: str, seed: int) -> dict[str, Any]:
    """What one run left behind."""
    run_dir = folder / f"{select}-{seed}"
    scores = [json.loads(line) for line in (run_dir / "scores.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lived = [s["return"] for s in scores if s["kind"] == "train"]
    wanted = ("replay/disagreement", "loss/disagreement", "select/kl", "select/doubt_share", "select/model_steps")
    maps = {
        int(path.name): unsure(path) for path in sorted((run_dir / "checkpoints").iterdir()) if path.name.isdigit()
    }
    return {
        "select": select, "seed": seed, **json.loads((run_dir / "cost.json").read_text()),
        "updates": max(row.get("updates", 0) for row in rows),
        "returns_by_mode": [[s["frames"], round(s["return"], 3)] for s in scores if s["kind"] == "eval_mode"],
        "training_episodes": {
            "count": len(lived), "quarters": [round(float(np.mean(q)), 3) for q in np.array_split(lived, 4)]
        },
        "metrics": {
            name: [[row["step"], round(row[name], 5)] for row in rows if name in row][-60:] for name in wanted
            if any(name in row for row in rows)
        },
        "disagreement_by_place": maps,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--select", nargs="+", default=["none", "acting", "both"])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "coplanner_glide.json")
    parser.add_argument("extra", nargs="*", help="further options of every run, after --")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for select in args.select:
            train(args.folder, select, seed, args.steps, args.extra)
    found = [result(args.folder, select, seed) for seed in args.seeds for select in args.select]
    document = {
        "command": " ".join(["python", "tools/coplanner.py", *sys.argv[1:]]),
        "what": "coplanner --task glide --env.course upwind: Dreamer with an idle ensemble (none), optimistic when it "
        "acts (acting), and conservative in dreams too (both); random play 0.06, expert 37.6",
        "evaluation": "50 episodes by the mode of the policy, which is the plain policy in all of them",
        "disagreement_by_place": "raw, mean over an expert's steps: left of 0.2 (where episodes begin), to 0.5, beyond",
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        "provenance": provenance(),
        "runs": found,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    for run in found:
        print(run["select"], run["seed"], run["cpu_seconds"], "s", run["returns_by_mode"][-1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
