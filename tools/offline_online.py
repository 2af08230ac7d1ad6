"""From data to an environment: what happens to an agent at the switch. Pendulum, a scripted policy's data.

    python tools/offline_online.py td3bc --seeds 0
    python tools/offline_online.py cql --both "--agent.value.norm layer" --online "--agent.conservatism.weight 0"

An agent learns offline, then goes on online: without the data, after a warm-up in which it acts as it is (WSRL); with
the data held beside what it lives; and, to compare, another one begins from nothing. The result,
docs/results/offline_online_VERSION.json, holds returns of evaluations by mode (10 episodes), by updates offline and by
decisions online, and the least one after the switch beside the one before it: a collapse is where it falls by more than
a third of the way down to the random policy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.train.manifest import provenance

ROOT = Path(__file__).resolve().parent.parent
RANDOM = -1230.0
"""Return of random actions on Pendulum-v1, mean of 100 episodes."""

AGENT = [
    "--env", "Pendulum-v1", "--agent.policy.units", "64", "64", "--agent.value.units", "64", "64",
    "--agent.batch-size", "128", "--agent.recent", "50000", "--agent.first", "1000", "--replay.batch-size", "2",
    "--replay.length", "2", "--train.eval-episodes", "10", "--train.eval-envs", "10", "--train.threads", "1",
    "--device", "cpu",
]  # fmt: skip


def swing(obs: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Pump energy, hold at the top; six actions in ten are random."""
    cos, sin, speed = obs["vector"]
    angle = np.arctan2(sin, cos)
    lacking = 15.0 * (1 - cos) - 0.5 * speed**2
    pump = np.sign(lacking * speed) if abs(speed) > 1e-3 else 1.0
    good = (-10.0 * angle - 2.0 * speed) / 2.0 if abs(angle) < np.pi / 6 else pump
    return np.array([rng.uniform(-1, 1) if rng.random() < 0.6 else np.clip(good, -1, 1)])


def worldmodel(*words: str | float | Path) -> None:
    subprocess.run([sys.executable, "-m", "worldmodel", *map(str, words)], check=True, cwd=ROOT, stdout=sys.stderr)


def curve(run_dir: Path) -> list[list[float]]:
    """(updates or decisions, return by mode)."""
    scores = [json.loads(line) for line in (run_dir / "scores.jsonl").read_text().splitlines()]
    return [[s["step"], round(s["return"], 1)] for s in scores if s["kind"] == "eval_mode"]


def one_seed(folder: Path, data: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    start, updates, decisions = sum(os.times()[:4]), args.updates, args.decisions
    common = ["--version", args.version, *AGENT, *shlex.split(args.both), "--seed", seed, "--train.log-steps", 500]
    off = folder / f"offline-{seed}"
    worldmodel(
        "train", "offline.state", *common, "--data", data, "--run-dir", off, "--train.steps", updates,
        "--train.eval-every", updates // 4,
    )
    online = [
        *common, "--train.steps", decisions, "--train.train-ratio", 4, "--train.eval-every", decisions // 16,
        *shlex.split(args.online),
    ]
    ways = {
        "warm-up": ["--init", off], "data kept": ["--init", off, "--data", data, "--replay.data-fraction", 0.5],
        "from nothing": [],
    }
    out: dict[str, Any] = {"offline": curve(off)}
    for name in args.ways:
        words, where = ways[name], folder / f"{name.replace(' ', '-')}-{seed}"
        worldmodel("train", "dyna", *online, *words, "--run-dir", where)
        out[name] = curve(where)
    before = out["offline"][-1][1]
    for name in {"warm-up", "data kept"} & set(args.ways):
        least = min(score for _, score in out[name])
        collapsed = least < before + (RANDOM - before) / 3
        out[f"{name}: before the switch, least after it, collapsed"] = [before, least, collapsed]
    return out | {"seed": seed, "cpu_seconds": round(sum(os.times()[:4]) - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="of dyna")
    parser.add_argument("--both", default="", help="options of both phases, in quotes")
    parser.add_argument("--online", default="", help="options of the second one, in quotes")
    parser.add_argument("--ways", nargs="+", default=["warm-up", "data kept", "from nothing"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--decisions", type=int, default=4000)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="offline-online-"))
    data = folder / "data"
    worldmodel("data", "collect", "--env", "Pendulum-v1", "--policy", f"{Path(__file__)}:swing", "--episodes", 50, data)
    runs = [one_seed(folder, data, seed, args) for seed in args.seeds]
    found = {
        "command": shlex.join(["python", "tools/offline_online.py", *sys.argv[1:]]),
        "agent": " ".join(AGENT),
        "data": "50 episodes of a controller, six actions in ten at random",
        "seeds": args.seeds, "random": RANDOM, "updates_per_decision": 1,
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()}, "provenance": provenance(),
        "curves": runs,
    }
    out = ROOT / "docs" / "results" / f"offline_online_{args.version}.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for run in runs for key, value in run.items() if "switch" in key}, indent=1))


if __name__ == "__main__":
    main()
