"""Writes tools/scores/ from clones of the repositories that published the numbers.

    python tools/collect_scores.py --clones DIR

DIR holds one clone per repository, named OWNER+NAME (``git clone https://github.com/OWNER/NAME DIR/OWNER+NAME``); files
are read from git at the commits below, so the clones may be bare, and every run of this command writes the same bytes.
A repository that is not there is passed over, and its tables stay as they are. Only numbers are taken.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import math
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCORES = Path(__file__).resolve().parent / "scores"

Runs = dict[str, list[list[tuple[float, float]]]]
"""By task, for each seed its (frames, return) pairs."""

DREAMER, DREAMER_COMMIT = "danijar/dreamerv3", "e3f02248693a79dc8b0ebd62c93683888ddaccfe"
DREAMER_2023 = "423291a9875bb9af43b6db7150aaa972ba889266"
TDMPC2, TDMPC2_COMMIT = "nicklashansen/tdmpc2", "e9f59321933cbc8e11a002b842adc7d4ffae8ff1"

PAPERS = {
    "dreamerv3": "Hafner et al. 2025, Mastering diverse control tasks through world models, Nature 640",
    "dreamerv3_2023": "Hafner et al. 2023, Mastering Diverse Domains through World Models, arXiv 2301.04104v1",
    "tdmpc2": "Hansen et al. 2024, TD-MPC2: Scalable, Robust World Models for Continuous Control, ICLR",
}


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A table made of learning curves."""

    benchmark: str
    slug: str
    method: str
    paper: str
    path: str
    frames: int
    final: tuple[int, int]
    """The last number of a seed is the mean over this window of frames, its left end excluded."""
    last_bin: bool = False
    """Where the source is binned and bins can be empty: take the last bin that is not and ends within the window."""
    grid: int
    """Frames between two points of the curve; each is the mean over the window that it ends."""
    number: str
    kind: str = "train"
    settings: str = ""
    repo: str = DREAMER
    commit: str = DREAMER_COMMIT
    licence: str = "MIT"


@dataclass(frozen=True, kw_only=True)
class Finals:
    """A table of last numbers, one per game and seed."""

    slug: str
    method: str
    paper: str
    repo: str
    commit: str
    path: str
    licence: str
    number: str
    settings: str = ""


TRAINING = "mean return of the training episodes that ended in the window (the policy samples)"
BINNED = "mean return of the training episodes in the bins of the window (the policy samples)"
EVALUATED = "mean evaluation return in the window, as logged"
V3 = "64 x 64 pixels, action repeat 2, train ratio 512, size 12m"
V3_2023 = "action repeat 2, train ratio 512, size S"
VISION, PROPRIO = {"benchmark": "dmc_vision", "frames": 1_000_000}, {"benchmark": "dmc_proprio", "frames": 500_000}
RERUN = "a baseline as the authors of DreamerV3 ran or collected it"

CURVES: tuple[Curves, ...] = (
    Curves(
        **VISION, slug="dreamerv3_2024", method="DreamerV3 2024", paper=PAPERS["dreamerv3"], number=TRAINING,
        path="scores/dmc_vision-dreamerv3.json.gz", final=(950_000, 1_000_000), grid=20_000, settings=V3,
    ),
    Curves(
        **VISION, slug="dreamerv3_2023", method="DreamerV3 2023", paper=PAPERS["dreamerv3_2023"], number=BINNED,
        path="scores/data/dmcvision_dreamerv3.json.gz", commit=DREAMER_2023, final=(950_000, 1_000_000), grid=30_000,
        settings=f"64 x 64 pixels, {V3_2023}",
    ),
    Curves(
        **VISION, slug="drqv2", method="DrQ-v2", paper=PAPERS["dreamerv3"], number=EVALUATED, kind="eval",
        path="scores/dmc_vision-drqv2.json.gz", final=(950_000, 1_000_000), grid=40_000, settings=RERUN,
    ),
    Curves(
        **VISION, slug="curl", method="CURL", paper=PAPERS["dreamerv3"], number=EVALUATED, kind="eval",
        path="scores/dmc_vision-curl.json.gz", final=(950_000, 1_000_000), grid=40_000, settings=RERUN,
    ),
    Curves(
        **PROPRIO, slug="dreamerv3_2023", method="DreamerV3 2023", paper=PAPERS["dreamerv3_2023"], number=BINNED,
        path="scores/dmc_proprio-dreamerv3.json.gz", final=(460_000, 490_000), grid=10_000, settings=V3_2023,
    ),
    Curves(
        **PROPRIO, slug="dmpo", method="DMPO", paper=PAPERS["dreamerv3"], number=EVALUATED, kind="eval",
        path="scores/dmc_proprio-dmpo.json.gz", final=(450_000, 500_000), grid=20_000, settings=RERUN,
    ),
    Curves(
        **PROPRIO, slug="d4pg", method="D4PG", paper=PAPERS["dreamerv3"], number=EVALUATED, kind="eval",
        path="scores/dmc_proprio-d4pg.json.gz", final=(450_000, 500_000), grid=20_000, settings=RERUN,
    ),
    Curves(
        benchmark="atari100k", slug="dreamerv3_2024", method="DreamerV3 2024", paper=PAPERS["dreamerv3"],
        path="scores/atari100k-dreamerv3.json.gz", frames=400_000, final=(390_000, 400_000), grid=20_000,
        number=TRAINING, settings="64 x 64 RGB, train ratio 128, size 200m, all 18 actions, no sticky actions",
    ),
    Curves(
        benchmark="atari100k", slug="dreamerv3_2023", method="DreamerV3 2023", paper=PAPERS["dreamerv3_2023"],
        path="scores/data/atari100k_dreamerv3.json.gz", commit=DREAMER_2023, frames=400_000,
        final=(0, 400_000), last_bin=True, grid=20_000, settings="train ratio 1024, no sticky actions",
        number="mean return of the training episodes in the last bin of 10,000 frames in which one ended",
    ),
    Curves(
        benchmark="atari100k", slug="ppo", method="PPO", paper=PAPERS["dreamerv3"], number=TRAINING,
        path="scores/atari100k-ppo_fixhp.json.gz", frames=400_000, final=(390_000, 400_000), grid=20_000,
        settings=RERUN,
    ),
    Curves(
        benchmark="atari200m", slug="dreamerv3_2024", method="DreamerV3 2024", paper=PAPERS["dreamerv3"],
        path="scores/atari57-dreamerv3.json.gz", frames=200_000_000, final=(190_000_000, 200_000_000),
        grid=10_000_000, number=TRAINING, settings="96 x 96 grey, sticky actions 0.25, train ratio 32, size 200m",
    ),
    Curves(
        **PROPRIO | {"frames": 4_000_000}, slug="tdmpc2", method="TD-MPC2", paper=PAPERS["tdmpc2"],
        path="results/tdmpc2", repo=TDMPC2, commit=TDMPC2_COMMIT, final=(3_900_000, 4_000_000), grid=100_000,
        number="mean return of 10 evaluation episodes, as logged", kind="eval", settings="action repeat 2",
    ),
    Curves(
        **VISION | {"frames": 2_000_000}, slug="tdmpc2", method="TD-MPC2", paper=PAPERS["tdmpc2"],
        path="results/tdmpc2-pixels", repo=TDMPC2, commit=TDMPC2_COMMIT, final=(1_900_000, 2_000_000), grid=100_000,
        number="mean return of 10 evaluation episodes, as logged", kind="eval", settings="action repeat 2",
    ),
)

IRIS = {"repo": "eloialonso/iris", "commit": "24326aaaa283c527f42b89b44cfdecf2665a7a16", "licence": "GPL-3.0"}
SIMULUS = {"repo": "leor-c/Simulus", "commit": "c1e75e9c98699dfde47190b03420e12a519d7245", "licence": "GPL-3.0"}
AFTER = "mean return of evaluation episodes after training"

FINALS: tuple[Finals, ...] = (
    Finals(
        slug="simulus", method="Simulus", paper="Cohen et al. 2025, Uncovering Untapped Potential in Sample-Efficient "
        "World Model Agents, arXiv 2502.11537", path="results/data/atari/Simulus.json", number=AFTER,
        settings="no sticky actions", **SIMULUS,
    ),
    Finals(
        slug="rem", method="REM", paper="Cohen et al. 2024, Improving Token-Based World Models with Parallel "
        "Observation Prediction, ICML", path="results/data/atari/REM.json", number=AFTER, **SIMULUS,
    ),
    Finals(
        slug="iris", method="IRIS", paper="Micheli et al. 2023, Transformers are Sample-Efficient World Models, ICLR",
        path="results/data/IRIS.json", number=f"{AFTER}, 100 episodes", settings="no sticky actions", **IRIS,
    ),
    Finals(
        slug="simple", method="SimPLe", paper="Kaiser et al. 2020, Model-Based Reinforcement Learning for Atari, ICLR",
        path="results/data/SimPLe.json", number="as tabulated by IRIS", **IRIS,
    ),
    Finals(
        slug="efficientzero", method="EfficientZero", paper="Ye et al. 2021, Mastering Atari Games with Limited Data, "
        "NeurIPS", path="results/data/EfficientZero.json", number="mean over seeds, as tabulated by IRIS: one number "
        "per game", **IRIS,
    ),
    Finals(
        slug="spr", method="SPR", paper="Schwarzer et al. 2021, Data-Efficient Reinforcement Learning with "
        "Self-Predictive Representations, ICLR", path="results/data/SPR.json", number="100 runs per game, as released "
        "with rliable and tabulated by IRIS", **IRIS,
    ),
    Finals(
        slug="twm", method="TWM", paper="Robine et al. 2023, Transformer-based World Models Are Happy With 100k "
        "Interactions, ICLR", repo="jrobine/twm", commit="e6a8e599864f5539b166ee9a8d173ece8f3fba84",
        path="results/scores.json", licence="MIT", number=AFTER,
    ),
    Finals(
        slug="storm", method="STORM", paper="Zhang et al. 2023, STORM: Efficient Stochastic Transformer based World "
        "Models for Reinforcement Learning, NeurIPS", repo="weipu-zhang/STORM",
        commit="1c50658e379d9470ba934f16ee72e810fc503f4e", path="results/storm.json", licence="none stated",
        number=AFTER, settings="sticky actions 0.25; Freeway without the demonstration that the paper's table has",
    ),
    Finals(
        slug="diamond", method="DIAMOND", paper="Alonso et al. 2024, Diffusion for World Modeling: Visual Details "
        "Matter in Atari, NeurIPS", repo="eloialonso/diamond", commit="5bcd1599755b4f2fae8e5e079e02f0728e174965",
        path="results/data/DIAMOND.json", licence="MIT", number=f"{AFTER}, 100 episodes",
        settings="no sticky actions",
    ),
    Finals(
        slug="delta_iris", method="Delta-IRIS", paper="Micheli et al. 2024, Efficient World Models with Context-Aware "
        "Tokenization, ICML", repo="vmicheli/delta-iris", commit="f8d417321717a3d7012488785d7cdc66b62455dd",
        path="results/atari.json", licence="GPL-3.0", number=f"{AFTER}, 100 episodes", settings="no sticky actions",
    ),
)


def main() -> None:
    """Write every table whose clone is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=Path, required=True, help="folder of clones named OWNER+NAME")
    clones: Path = parser.parse_args().clones
    random_and_human = references(clones)
    games = {letters(game): game for game in random_and_human}
    for table in (*CURVES, *FINALS):
        if not locate(clones, table.repo):
            print(f"passed over: no clone of {table.repo}")
        elif isinstance(table, Curves):
            write(table.benchmark, table.slug, from_curves(clones, table))
        else:
            write("atari100k", table.slug, from_finals(clones, table, games))


def references(clones: Path) -> dict[str, list[float]]:
    """Random and human scores of the Atari games; written beside the tables."""
    lines = show(clones, DREAMER, DREAMER_COMMIT, "baselines.yaml").decode().split("dmlab30:")[0]
    pairs = re.findall(r"atari_(\w+): \[([-\d.]+), ([-\d.]+)\]", lines)
    found = {game: [float(random), float(human)] for game, random, human in pairs}
    document = {
        "what": "random and human score of each game; a human-normalised score is (x - random) / (human - random)",
        "source": {"repo": DREAMER, "commit": DREAMER_COMMIT, "path": "baselines.yaml", "licence": "MIT"},
        "games": found,
    }
    (SCORES / "atari_references.json").write_text(compact(document))
    return found


def from_curves(clones: Path, table: Curves) -> dict[str, Any]:
    """Window the raw curves."""
    runs = tdmpc2_runs(clones, table) if table.repo == TDMPC2 else dreamer_runs(clones, table)
    end = table.final[1]
    runs = each(runs, lambda run: [(x, y) for x, y in run if x <= end and math.isfinite(y)])
    marks = list(range(table.grid, end + 1, table.grid))
    return head(table, table.frames, table.kind) | {
        "final_window": list(table.final),
        "final": each(runs, lambda run: window(run[-1:] if table.last_bin else run, *table.final, digits=4)),
        "curve": {
            "frames": marks,
            "window": table.grid,
            "returns": each(runs, lambda run: [window(run, x - table.grid, x, digits=1) for x in marks]),
        },
    }


def from_finals(clones: Path, table: Finals, games: dict[str, str]) -> dict[str, Any]:
    """Copy the numbers, under our names of the games."""
    raw: dict[str, list[float]] = json.loads(show(clones, table.repo, table.commit, table.path))
    final = {games[letters(game)]: [round(x, 4) for x in values] for game, values in raw.items()}
    return head(table, 400_000, "eval") | {"final": dict(sorted(final.items()))}


def head(table: Curves | Finals, frames: int, kind: str) -> dict[str, Any]:
    """What every table says of itself."""
    source = {"paper": table.paper, "repo": table.repo, "commit": table.commit, "path": table.path}
    protocol = {"frames": frames, "kind": kind, "number": table.number, "settings": table.settings}
    return {"method": table.method, "source": source | {"licence": table.licence}, "protocol": protocol}


def each(runs: Runs, work: Callable[[list[tuple[float, float]]], Any]) -> dict[str, list[Any]]:
    """``work`` of every seed of every task."""
    return {task: [work(run) for run in seeds] for task, seeds in sorted(runs.items())}


def window(run: list[tuple[float, float]], low: float, high: float, *, digits: int) -> float | None:
    """Mean return over (low, high]; None where there is none."""
    inside = [y for x, y in run if low < x <= high]
    return round(statistics.fmean(inside), digits) if inside else None


def dreamer_runs(clones: Path, table: Curves) -> Runs:
    """The score files of danijar/dreamerv3: a list of {task, seed, xs, ys}."""
    runs: Runs = {}
    for row in json.loads(gzip.decompress(show(clones, DREAMER, table.commit, table.path))):
        task = row["task"].removeprefix("dmc_").removeprefix("atari_")
        runs.setdefault(task, []).append(list(zip(row["xs"], row["ys"])))
    return runs


def tdmpc2_runs(clones: Path, table: Curves) -> Runs:
    """One CSV per task with the columns step (frames), reward, seed; tasks of the DM Control Suite itself only."""
    from dm_control import suite

    known = {f"{domain}_{task}" for domain, task in suite.ALL_TASKS}
    runs: Runs = {}
    folder = locate(clones, TDMPC2)
    listed = git(folder, "ls-tree", "--name-only", table.commit, f"{table.path}/").decode().split()
    for path in listed:
        task = re.sub(r"^cup_", "ball_in_cup_", Path(path).stem.replace("-", "_"))
        if task in known:
            seeds: dict[str, list[tuple[float, float]]] = {}
            for row in csv.DictReader(io.StringIO(git(folder, "show", f"{table.commit}:{path}").decode())):
                seeds.setdefault(row["seed"], []).append((float(row["step"]), float(row["reward"])))
            runs[task] = [seeds[seed] for seed in sorted(seeds)]
    return runs


def locate(clones: Path, repo: str) -> Path | None:
    """The clone of a repository, or the bare one inside of it."""
    folder = clones / repo.replace("/", "+")
    inside: Iterable[Path] = (folder, folder / "repo")
    return next((path for path in inside if (path / "HEAD").exists() or (path / ".git").exists()), None)


def show(clones: Path, repo: str, commit: str, path: str) -> bytes:
    """A file of a clone at a commit."""
    return git(locate(clones, repo), "show", f"{commit}:{path}")


def git(folder: Path | None, *words: str) -> bytes:
    """What a git command prints."""
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True).stdout


def letters(game: str) -> str:
    """"BankHeist", "bank_heist" -> "bankheist"."""
    return re.sub(r"[^a-z]", "", game.lower())


def write(benchmark: str, slug: str, document: dict[str, Any]) -> None:
    """One table; says how large it is."""
    path = SCORES / benchmark / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compact(document))
    print(f"{path.relative_to(SCORES)}: {len(document['final'])} tasks, {path.stat().st_size / 1024:.0f} KiB")


def compact(document: dict[str, Any]) -> str:
    """JSON with one line for each task."""
    lines = []
    for key, value in document.items():
        if isinstance(value, dict) and key in ("final", "games"):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        elif key == "curve":
            tasks = value["returns"].items()
            inner = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in tasks)
            rest = f'  "frames": {json.dumps(value["frames"])},\n  "window": {value["window"]},\n'
            lines.append(f' "curve": {{\n{rest}  "returns": {{\n{inner}\n  }}\n }}')
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
