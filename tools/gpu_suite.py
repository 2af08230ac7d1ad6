"""What only a GPU shows, in steps: call it again and again until it says that all is done.

    python tools/gpu_suite.py --minutes 9 --peer ../r2dreamer
    python tools/gpu_suite.py --dry-run
    python tools/gpu_suite.py --tiny --device cpu

A call keeps to --minutes and goes on where the last one stopped: gpu_suite.json, in --carry and in --out, holds what is
done, with its results; what was measured at another commit or on another device is measured again. Learning runs lie in
--carry too; a call stops them in time, by the request that Ctrl-C makes, and the next one resumes them. --tiny runs
every step for seconds, to test the suite itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.train.manifest import provenance

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "results" / "published_dmc_vision_early.json"
STATE = "gpu_suite.json"
TINY = [
    "quickstart", "--agent.imagination", "2", "--replay.batch-size", "2", "--replay.length", "4", "--train.threads", "1"
]
QUICK = ["--blocks", "1", "--seconds", "0", "--warmup", "1", "--held", "70"]
RESERVE = 45.0
"""Seconds that a learning run is given to save itself."""
SHORTEST = 120.0
"""Seconds below which it is not worth resuming."""
TRIES = 2


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to run."""

    name: str
    minutes: float
    """Estimated, on one H200; nobody has measured them yet."""
    words: tuple[str, ...]
    """What follows ``worldmodel bench`` or ``worldmodel train``, or a kernel's name."""
    kind: str = field(default="bench")
    """"tests", "bench", "beside" (a peer), "kernel", or "learn"."""


PIXELS = ("dmc.vision", "--env.render", "ray")
PROPRIO = ("dmc.proprio", "--task", "walker_walk")
BARLOW = ("--objective", "barlow", "--agent.model.probe", "False")
RUNS: dict[str, tuple[str, ...]] = {
    "1m-proprio": (*PROPRIO, "--size", "1m"),
    "12m-pixels": (*PIXELS, "--size", "12m"),
    "12m-pixels-barlow": (*PIXELS, "--size", "12m", *BARLOW),
    "50m-pixels": (*PIXELS, "--size", "50m"),
    "50m-pixels-barlow": (*PIXELS, "--size", "50m", *BARLOW),
}
"""What updates are measured of, and beside a peer."""
CORES: dict[str, tuple[str, ...]] = {
    "12m-pixels-mamba": (*PIXELS, "--size", "12m", "--core", "mamba"),
    "12m-pixels-transformer": (*PIXELS, "--size", "12m", "--core", "transformer"),
    "drama": ("drama", "--task", "boxing"),
    "storm": ("storm", "--task", "boxing"),
}
"""The same of the other cores: of the RSSM's size, and as published, with 1,024 dreams of 16 steps."""
AGENTS: dict[str, tuple[str, ...]] = {
    "tdmpc2-5m": ("tdmpc2", "--task", "walker_walk", "--size", "5m"),
    "dyna-mbpo": ("dyna", "--env", "Pendulum-v1", "--version", "mbpo", "--agent.first", "1000"),
    "dyna-mobile": ("dyna", "--env", "Pendulum-v1", "--version", "mobile", "--agent.first", "1000"),
}
"""The same of agents that are no Dreamer."""
PLANS: dict[str, tuple[str, ...]] = {
    "tdmpc2-5m": ("tdmpc2", "--size", "5m"),
    "tdmpc2-5m-parity": ("tdmpc2", "--size", "5m", "--mode", "parity"),
    "dreamer-12m-pixels": ("dreamer_plans.vision", "--env.render", "ray", "--size", "12m"),
}
"""Whose decisions are planned: their latency by number of environments, compiled and captured as a run's are."""
LEARNING: dict[str, tuple[float, tuple[str, ...]]] = {
    "walker_stand": (20, (*PIXELS, "--task", "walker_stand", "--train.steps", "32000")),
    "cartpole_swingup": (36, (*PIXELS, "--task", "cartpole_swingup", "--train.steps", "60000")),
    "boxing": (20, ("atari100k", "--task", "boxing", "--size", "12m")),
    "boxing_drama": (60, ("drama", "--task", "boxing")),
}
"""Minutes and words of each run: far enough for the marks that tell a learner from a broken one."""


FIRST = (
    "tests", "update/12m-pixels", "kernel/ssd_scan", "plan/tdmpc2-5m", "beside/12m-pixels", "update/12m-pixels-mamba",
    "update/12m-pixels-transformer",
)
"""A quarter of an hour that tells something of everything; a machine may be lent for no longer."""


def steps() -> list[Step]:
    """Everything, what tells most in the shortest time first."""
    return sorted(_by_kind(), key=lambda step: FIRST.index(step.name) if step.name in FIRST else len(FIRST))


def _by_kind() -> list[Step]:
    kernels = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/bench.py"))
    return [
        Step(name="tests", minutes=4, words=(), kind="tests"),
        *(
            Step(name=f"update/{name}", minutes=1.5, words=("update", *words))
            for name, words in (RUNS | CORES | AGENTS).items()
        ),
        Step(
            name="update/12m-pixels-float32", minutes=1.5,
            words=("update", *RUNS["12m-pixels"], "--agent.precision", "float32"),
        ),
        *(
            Step(name=f"act/{name}", minutes=1, words=("act", *RUNS[name], "--batches", "1", "16", "64"))
            for name in ("1m-proprio", "12m-pixels", "50m-pixels")
        ),
        *(
            Step(name=f"plan/{name}", minutes=1, words=("act", *words, "--batches", "1", "8", "64"))
            for name, words in PLANS.items()
        ),
        Step(name="replay", minutes=1.5, words=("replay", *RUNS["12m-pixels"])),
        *(
            Step(name=f"beside/{name}", minutes=4, words=("update", *words), kind="beside")
            for name, words in RUNS.items()
        ),
        *(Step(name=f"kernel/{name}", minutes=1.5, words=(name,), kind="kernel") for name in kernels),
        *(
            Step(name=f"learn/{name}", minutes=minutes, words=words, kind="learn")
            for name, (minutes, words) in LEARNING.items()
        ),
    ]


class Suite:
    """The steps, what is done of them, and this call's deadline."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.deadline = time.monotonic() + 60 * args.minutes
        self.here = {"commit": provenance()["commit"], "device": device_name(args.device)}
        held = [folder / STATE for folder in (args.carry, args.out) if (folder / STATE).is_file()]
        self.done: dict[str, Any] = {} if args.fresh or not held else json.loads(held[0].read_text())["steps"]

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def chosen(self) -> list[Step]:
        """Steps that were asked for and can be run."""
        wanted = [step for step in steps() if step.name.startswith(self.args.only)]
        return [step for step in wanted if step.kind != "beside" or self.args.peer is not None]

    def is_done(self, step: Step) -> bool:
        """Finished, or tried too often; a measurement only for what is measured now."""
        found = self.done.get(step.name)
        if found is None or (step.kind != "learn" and found["here"] != self.here):
            return False
        return found["state"] == "done" or found["tries"] >= TRIES

    def run(self) -> bool:
        """Run what fits; whether everything is done."""
        is_first = True
        for step in self.chosen():
            if self.is_done(step):
                continue
            # One that never fits gets a call of its own
            fits = self.left > 60 * step.minutes or is_first
            if self.left <= 0 or not (fits or (step.kind == "learn" and self.left > SHORTEST)):
                print(f"{step.name}: no time left")
                continue
            is_first = False
            print(f"{step.name}: begins, about {step.minutes:g} minutes", flush=True)
            self.keep(step, *getattr(self, f"_{step.kind}")(step))
        left = [step.name for step in self.chosen() if not self.is_done(step)]
        print(f"left: {', '.join(left)}; call again" if left else "all done")
        return not left

    def keep(self, step: Step, state: str, result: dict[str, Any]) -> None:
        """Note what came of a step, in both folders."""
        before = self.done.get(step.name, {})
        tries = before.get("tries", 0) + 1 if state == "failed" and before.get("here", self.here) == self.here else 0
        tries = max(tries, 1) if state == "failed" else tries
        self.done[step.name] = {"state": state, "tries": tries, "here": self.here, "result": result}
        document = {"command": "python tools/gpu_suite.py", "provenance": provenance(), "steps": self.done}
        for folder in {self.args.carry, self.args.out}:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE).write_text(json.dumps(document, indent=1) + "\n")
        said = result.get("failed", "") or json.dumps(result.get("said", ""))
        print(f"{step.name}: {state} {said}", flush=True)

    # Kinds of steps

    def _tests(self, step: Step) -> tuple[str, dict[str, Any]]:
        where = "tests/gpu" if self.args.tiny else "tests"
        code, out, _ = self._call([sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfE", where])
        lines = out.splitlines()[-40:]
        is_fine = code == 0 or (self.args.tiny and code == 5)
        return ("done", {"said": lines[-1:], "lines": lines}) if is_fine else ("failed", {"failed": "\n".join(lines)})

    def _bench(self, step: Step, *more: str) -> tuple[str, dict[str, Any]]:
        part, *words = step.words
        words = [*TINY, *QUICK] if self.args.tiny else words
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            command = [*worldmodel(), "bench", part, *words, "--device", self.args.device, "--json", str(path), *more]
            return self._measured(command, path)

    def _beside(self, step: Step) -> tuple[str, dict[str, Any]]:
        return self._bench(step, "--against", str(self.args.peer), "--peer-python", self.args.peer_python)

    def _kernel(self, step: Step) -> tuple[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            quick = QUICK[:6] if self.args.tiny else []
            command = [*worldmodel(), "bench", "kernels", *step.words, *quick]
            return self._measured([*command, "--device", self.args.device, "--json", str(path)], path)

    def _measured(self, command: list[str], path: Path) -> tuple[str, dict[str, Any]]:
        code, _, errors = self._call(command)
        if code or not path.is_file():
            return "failed", {"failed": (errors.strip().splitlines() or [f"exit code {code}"])[-1]}
        found = json.loads(path.read_text())
        rows = found.get("rows", {})
        return "done", {"said": {name: row.get("median_ms", row.get("ratio")) for name, row in rows.items()}, **found}

    def _learn(self, step: Step) -> tuple[str, dict[str, Any]]:
        folder = self.args.carry / step.name.replace("/", "-")
        begun = time.monotonic()
        reserve = 0.0 if self.args.tiny else RESERVE
        code, out, errors = self._call(self._learn_command(step, folder), stop_after=max(1.0, self.left - reserve))
        points = curve(folder)
        result = {
            "said": out.strip().splitlines()[:1], "minutes_of_this_call": round((time.monotonic() - begun) / 60, 2),
            "against_published": against_published(points, step.name.removeprefix("learn/")), "curve": points,
        }
        if code == 0:
            return "done", result
        if code in (128 + signal.SIGINT, -signal.SIGINT) and (folder / "checkpoints").is_dir():
            return "going on", result
        return "failed", result | {"failed": (errors.strip().splitlines() or [f"exit code {code}"])[-1]}

    def _learn_command(self, step: Step, folder: Path) -> list[str]:
        """Begin a run, or go on with it."""
        if (folder / "config.json").is_file():
            return [*worldmodel(), "resume", str(folder)]
        words = [*TINY, "--train.steps", "40", "--train.eval-episodes", "1"] if self.args.tiny else list(step.words)
        return [*worldmodel(), "train", *words, "--device", self.args.device, "--run-dir", str(folder)]

    def _call(self, command: list[str], stop_after: float | None = None) -> tuple[int, str, str]:
        """Exit code and what was said. It is asked to stop after ``stop_after`` seconds, and killed at the deadline."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, text=True)
            try:
                if stop_after is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(stop_after)
                    if process.poll() is None:
                        process.send_signal(signal.SIGINT)
                # Tiny steps take seconds, whatever the deadline
                code = process.wait(max(self.left, 300.0 if self.args.tiny else 5.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = 124
                errors.write(f"\nstopped: no time left of {self.args.minutes:g} minutes\n")
            out.seek(0)
            errors.seek(0)
            return code, out.read(), errors.read()


def worldmodel() -> list[str]:
    """This checkout's command line."""
    return [sys.executable, "-m", "worldmodel"]


def device_name(device: str) -> str:
    """The accelerator as its driver names it, or "cpu"."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def curve(folder: Path) -> dict[str, list[list[float]]]:
    """[frames, return] of training episodes and evaluations."""
    path = folder / "scores.jsonl"
    found: dict[str, list[list[float]]] = {}
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        found.setdefault(line["kind"], []).append([line["frames"], round(line["return"], 3)])
    return found


def against_published(points: dict[str, list[list[float]]], task: str) -> list[dict[str, Any]]:
    """Ours beside mean, lowest and highest published seed at every mark that the run has reached."""
    table = json.loads(PUBLISHED.read_text())
    episodes = points.get("train", [])
    rows = []
    for mark, (mean, low, high) in zip(table["frames"], table["tasks"].get(task, [])):
        window = [r for frames, r in episodes if mark - table["window_frames"] < frames <= mark]
        if window and episodes[-1][0] >= mark:
            ours = round(statistics.mean(window), 1)
            rows.append({"frames": mark, "ours": ours, "episodes": len(window), "mean": mean, "low": low, "high": high})
    return rows


def main(argv: list[str] | None = None) -> int:
    """0: all done; 1: call again; 2: nothing can be run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock of this call")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder for gpu_suite.json")
    parser.add_argument("--carry", type=Path, default=ROOT / "runs" / "gpu_suite", help="what the next call needs")
    parser.add_argument("--peer", type=Path, default=None, help="a checkout of r2dreamer; without it, no comparison")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that it runs in")
    parser.add_argument("--only", default="", help="steps whose names begin so: update, learn/walker_stand")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="every step for seconds, to test the suite itself")
    parser.add_argument("--fresh", action="store_true", help="forget what is done; learning runs go on all the same")
    parser.add_argument("--dry-run", action="store_true", help="list the steps with their estimated minutes")
    args = parser.parse_args(argv)
    known = [step for step in steps() if step.name.startswith(args.only)]
    if not known:
        print(f"gpu_suite: no step begins with {args.only!r}; see --dry-run")
        return 2
    if args.dry_run:
        for step in known:
            print(f"{step.minutes:5.1f} min  {step.name:26} {step.kind:7} {' '.join(step.words)}")
        print(f"{sum(step.minutes for step in known):5.1f} min  in all")
        return 0
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("gpu_suite: torch sees no CUDA device here; run it on one, or test it with --device cpu --tiny")
            return 2
    if args.peer is not None and not args.peer.is_dir():
        print(f"gpu_suite: --peer {args.peer}: there is no such folder; give a checkout of r2dreamer")
        return 2
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    return 0 if Suite(args).run() else 1


if __name__ == "__main__":
    sys.exit(main())
