"""Learning runs as evidence: trains a preset with several seeds, evaluates 100 fresh episodes each, writes one JSON.

    python tools/learning.py catch --seeds 0 1 2 --pass-at 3.6 -- quickstart
    python tools/learning.py glide_barlow --seeds 0 --pass-at 40.4 -- quickstart --task glide --objective barlow
    python tools/learning.py glide_barlow --seeds 1 --add --pass-at 40.4 -- quickstart --task glide --objective barlow

What it writes, docs/results/NAME.json, holds the command, commit, machine, versions, seeds, the learning curve of each
run (evaluations by mode, frames, seconds by the clock and of the processor), its commit and the final evaluation; it
exits with 1 when a seed misses --pass-at. With --add the seeds join those of the same command that the file holds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worldmodel.train.manifest import provenance

ROOT = Path(__file__).resolve().parent.parent


def one_run(folder: Path, arguments: list[str], seed: int, episodes: int, longer: list[str]) -> dict:
    """Train (or go on with a run that is there), then evaluate what the newest checkpoint holds."""
    run_dir = folder / f"seed-{seed}"
    start = time.monotonic()
    # a preset of somebody's own: later commands must be told that they may import it
    allow = ["--allow", arguments[0]] if ":" in arguments[0] else []
    if longer:
        train = [sys.executable, "-m", "worldmodel", "resume", str(run_dir), *allow, *longer]
    else:
        where = ["--run-dir", str(run_dir), "--seed", str(seed)]
        train = [sys.executable, "-m", "worldmodel", "train", *arguments, *where]
    log = folder / f"seed-{seed}.log"
    with log.open("a") as out:
        child = subprocess.Popen(train, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, train)
    seconds = time.monotonic() - start
    # a busy machine takes longer; its processor does not
    cpu_seconds = used.ru_utime + used.ru_stime
    command = [sys.executable, "-m", "worldmodel", "eval", str(run_dir), *allow, "--episodes", str(episodes), "--json"]
    final = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
    scores = [json.loads(line) for line in (run_dir / "scores.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    curve = {
        kind: [[s["frames"], round(s["return"], 4)] for s in scores if s["kind"] == f"eval_{kind}"]
        for kind in ("mode", "sampled")
    }
    updates = max((row["updates"] for row in metrics if "updates" in row), default=0)
    took = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    return {"seed": seed, **took, "updates": updates, "curve": curve, "final": final}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument(
        "--parallel", type=int, default=1, help="runs side by side; more than 1 makes wall seconds less telling"
    )
    parser.add_argument("--pass-at", type=float, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the run folders go (default: a temporary one)")
    parser.add_argument("--resume", default="", help='go on with the runs in --folder: "--train.steps 60000"')
    parser.add_argument("--add", action="store_true", help="keep the other seeds that docs/results/NAME.json holds")
    parser.add_argument("preset", nargs="+", help="preset and its overrides, after --")
    args = parser.parse_args()
    then = f", then worldmodel resume {args.resume}" if args.resume else ""
    command = f"worldmodel train {' '.join(args.preset)}{then}"
    path = ROOT / "docs" / "results" / f"{args.name}.json"
    if args.add:
        others(path, command, args.seeds)
    folder = args.folder or Path(tempfile.mkdtemp(prefix=f"learning-{args.name}-"))
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.parallel) as pool:
        longer = args.resume.split()
        runs = list(pool.map(lambda seed: one_run(folder, args.preset, seed, args.episodes, longer), args.seeds))
    kept = []
    if args.add:
        try:
            # again: another process may have added its seeds meanwhile
            kept = others(path, command, args.seeds)
        except SystemExit as error:
            path = path.with_suffix(".new.json")
            print(f"{error}; what was learned in {folder} is in {path.name}")
    runs = sorted([*kept, *(run | {"commit": provenance()["commit"]} for run in runs)], key=lambda run: run["seed"])
    returns = [run["final"]["mode"]["return"] if "mode" in run["final"] else run["final"]["return"] for run in runs]
    result = {
        "command": command,
        "seeds": [run["seed"] for run in runs],
        "parallel": args.parallel,
        "evaluation": f"{args.episodes} fresh episodes by the mode of the policy, newest checkpoint",
        "returns": returns,
        "pass_at": args.pass_at,
        "passed": None if args.pass_at is None else [r >= args.pass_at for r in returns],
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "cpu": _cpu()},
        "provenance": provenance(),
        "runs": runs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{args.name}: returns {returns}, {[r['seconds'] for r in runs]} s -> {path.relative_to(ROOT)}")
    return 0 if args.pass_at is None or all(result["passed"]) else 1


def others(path: Path, command: str, seeds: list[int]) -> list[dict]:
    """Runs of other seeds that the file holds, each with its commit."""
    if not path.exists():
        return []
    held = json.loads(path.read_text())
    if held["command"] != command:
        raise SystemExit(f"{path} is of `{held['command']}`, not of `{command}`; take another name, or no --add")
    return [{"commit": held["provenance"]["commit"], **run} for run in held["runs"] if run["seed"] not in seeds]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
