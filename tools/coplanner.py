"""COPlanner beside plain agents: Dreamers on Glide against the wind, agents of vectors on the Control Suite.

    python tools/coplanner.py --folder RUNS --seeds 0 --select none acting both --steps 12000
    python tools/coplanner.py --dmc --folder RUNS --seeds 0 --select sac plain coplanner --steps 2500
    python tools/coplanner.py --cost

Trains ``coplanner --task glide --env.course upwind``, where random play never sees the far side, with each ``--select``
and seed (what is finished is kept), then asks every checkpoint how unsure it is along an expert's way from the left of
the room to the right. Writes docs/results/coplanner_glide.json with curves, the processor time of each run, commit,
machine and versions.
With --dmc, ``dyna --env dmc:cartpole_swingup`` by SAC, FTFL ("plain") and COPlanner on it, and coplanner_dmc.json. How
unsure and how wrong models are is asked along the way of SAC with seed 0, which is trained first, or has to be there.
With --cost, docs/results/coplanner_cost.json: processor time of an update and of a decision, by what is selected; with
--cost-of-dyna, docs/results/coplanner_dyna_cost.json, the same of dreams and decisions from vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from worldmodel import collect, presets, runs, tree
from worldmodel.bench.setup import filled_replay, random_step
from worldmodel.configs.dyna import agent as dyna
from worldmodel.data.episodes import Episode
from worldmodel.envs.toys.base import ToyConfig, expert
from worldmodel.models.heuristics import HEURISTICS
from worldmodel.rng import Stream
from worldmodel.train.manifest import provenance
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec, Transitions

ROOT = Path(__file__).resolve().parent.parent
EVERY = 2000
"""Decisions between evaluations, and between checkpoints, on Glide."""
PLACES = (0.0, 0.2, 0.5, 1.01)
"""Bounds of left (where episodes begin), middle and right (where targets lie), in rooms."""


STATE = (
    "dyna", "--env", "dmc:cartpole_swingup", "--env.repeat", "8", "--agent.value.norm", "layer", "--agent.lr", "1e-3",
    "--agent.policy-lr", "1e-3",
)
MODEL = ("--agent.model.predicts", "next", "--agent.model.targets", "standard", "--agent.branch.rows", "3000")
VERSIONS = {
    "sac": ("--version", "sac"),
    "plain": ("--version", "mbpo", *MODEL),
    "coplanner": (
        "--version", "coplanner", *MODEL, "--agent.dreaming.candidates", "3", "--agent.dreaming.horizon", "3",
    ),
}
"""Of ``--dmc``, beside what all have in common. "plain" is ftfl, with fewer branches."""


def preset(args: argparse.Namespace, select: str) -> tuple[tuple[str, ...], int, int]:
    """The words of a run, decisions between its evaluations, and episodes of each."""
    if args.dmc:
        return (*STATE, *VERSIONS[select]), 500, 5
    return ("coplanner", "--task", "glide", "--select", select, "--env.course", "upwind"), EVERY, 50


def train(args: argparse.Namespace, select: str, seed: int) -> None:
    """One run, and the processor seconds it took beside it."""
    folder = args.folder
    run_dir = folder / f"{select}-{seed}"
    if (run_dir / "cost.json").exists():
        return
    words, every, episodes = preset(args, select)
    command = [
        sys.executable, "-m", "worldmodel", "train", *words, "--seed", str(seed), "--run-dir", str(run_dir),
        "--train.steps", str(args.steps), "--train.eval-every", str(every), "--train.eval-episodes", str(episodes),
        "--train.checkpoint-steps", str(every), "--train.keep-checkpoints", "99", *args.extra,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / f"{select}-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (run_dir / "cost.json").write_text(json.dumps({"cpu_seconds": round(seconds, 1)}) + "\n")


def unsure(checkpoint: Path, episodes: int = 16) -> dict[str, float]:
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


def along(data: list[Episode]) -> Callable[[Path], dict[str, float] | None]:
    """A checkpoint of dyna to the "doubt" of its model along data, the mean over numbers of the standard deviation of
    members' means, and to its "error", the root mean square by which its elites' mean misses changes and rewards, in
    units of their spread, and the same of the reward alone; None without a model."""
    seen = [{key: torch.from_numpy(x) for key, x in episode.obs.items()} for episode in data]
    action = torch.from_numpy(np.concatenate([episode.action for episode in data])).float()
    reward = torch.from_numpy(np.concatenate([episode.reward for episode in data])).float()

    def ask(checkpoint: Path) -> dict[str, float] | None:
        model = cast(Any, runs.load(checkpoint, device="cpu").agent).model
        if model is None:
            return None
        with torch.no_grad():
            states = [model.read(obs) for obs in seen]
            x, change = torch.cat([at[:-1] for at in states]), torch.cat([at[1:] - at[:-1] for at in states])
            truth = torch.cat([change, reward.unsqueeze(-1)], -1)
            mean, log_var = model.gaussians(x, action)
            doubt = HEURISTICS["average_std"](mean, (0.5 * log_var).exp()).mean()
            error = (mean[model.elite].mean(0) - truth).square().mean(0).sqrt() / truth.std(0)
        return {
            "doubt": round(float(doubt), 6), "error": round(float(error.mean()), 5),
            "error_of_reward": round(float(error[-1]), 5),
        }

    return ask


def result(
    folder: Path, select: str, seed: int, ask: Callable[[Path], dict[str, float] | None]
) -> dict[str, Any]:
    """What one run left behind, and what its checkpoints answer."""
    run_dir = folder / f"{select}-{seed}"
    scores = [json.loads(line) for line in (run_dir / "scores.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    config, spent = json.loads((run_dir / "config.json").read_text()), run_dir / "cost.json"
    done = spent.exists()
    lived = [s["return"] for s in scores if s["kind"] == "train"]
    wanted = ("replay/disagreement", "loss/disagreement", "select/kl", "select/doubt_share", "select/model_steps")
    wanted += ("model/holdout_mse", "value/mean")
    maps = {
        int(path.name): ask(path) for path in sorted((run_dir / "checkpoints").iterdir()) if path.name.isdigit()
    }
    return {
        "select": select, "seed": seed, "cpu_seconds": json.loads(spent.read_text())["cpu_seconds"] if done else None,
        "decisions": rows[-1]["step"], "commit": config["provenance"]["commit"],
        "updates": max(row.get("updates", 0) for row in rows),
        "returns_by_mode": [[s["frames"], round(s["return"], 3)] for s in scores if s["kind"] == "eval_mode"],
        "training_episodes": {
            "count": len(lived), "quarters": [round(float(np.mean(q)), 3) for q in np.array_split(lived, 4)]
        },
        "metrics": {
            name: [[row["step"], round(row[name], 5)] for row in rows if name in row][-60:] for name in wanted
            if any(name in row for row in rows)
        },
        "checkpoints": maps,
    }


def cost(rounds: int = 12) -> list[dict[str, Any]]:
    """Processor milliseconds of an update of 16 x 16 steps and of a decision of 8 environments, blocks in turn."""
    torch.set_num_threads(1)
    subjects, spent = [], []
    for select, fraction in (("none", 0.0), ("acting", 0.0), ("both", 0.25), ("both", 1.0)):
        run = presets.find_preset("coplanner").build({"task": "glide", "select": select})
        config = run.agent
        if fraction:
            config = replace(config, dreaming=replace(config.dreaming, fraction=fraction))
        toys = run.env.build_batch(8)
        agent = config.build(toys.spec)
        replay = filled_replay(run.replay, toys.spec, agent, 8, 1000, device=torch.device("cpu"), seed=0)
        subjects.append((agent, replay.sample(), random_step(toys.spec, 8, 1), agent.initial(8)))
        spent.append({"select": select, "share_of_dreams": fraction, "update_ms": [], "decision_ms": []})
    for turn in range(rounds + 1):
        for (agent, batch, step, carry), row in zip(subjects, spent):
            before = time.process_time()
            agent.learn(batch)
            between = time.process_time()
            for _ in range(10):
                agent.act(carry, step, explore=True)
            if turn:  # the first is for warming up
                row["update_ms"].append(1e3 * (between - before))
                row["decision_ms"].append(1e2 * (time.process_time() - between))
    return [{k: round(float(np.median(x)), 2) if isinstance(x, list) else x for k, x in row.items()} for row in spent]


def cost_of_dyna(rounds: int = 5, branches: int = 1000) -> list[dict[str, Any]]:
    """Processor milliseconds of dreaming one step of so many branches, and of a decision of one environment, with and
    without selection; sizes are Hopper's, blocks in turn."""
    torch.set_num_threads(1)
    spec = EnvSpec(
        name="hopper-like", obs={"vector": ArraySpec(shape=(11,), dtype="float32")},
        action=ActionSpec(kind="continuous", size=3),
    )
    agents, spent = [], []
    for version in ("mbpo", "coplanner"):
        config = dyna(version)
        config = replace(config, branch=replace(config.branch, rows=branches))
        agent = config.build(spec)
        zero = torch.zeros(1000)
        agent.seen.add(Transitions(
            x=torch.randn(1000, 11), action=torch.rand(1000, 3) * 2 - 1, reward=zero, next_x=torch.randn(1000, 11),
            terminal=zero, edge=zero,
        ))
        agents.append((agent, random_step(spec, 1, 1), agent.initial(1)))
        spent.append({"version": version, "branches": branches, "dream_ms": [], "decision_ms": []})
    for turn in range(rounds + 1):
        for (agent, step, carry), row in zip(agents, spent):
            before = time.process_time()
            agent.dream(1)
            between = time.process_time()
            for _ in range(20):
                agent.act(carry, step, explore=True)
            if turn:
                row["dream_ms"].append(1e3 * (between - before))
                row["decision_ms"].append(1e3 / 20 * (time.process_time() - between))
    return [{k: round(float(np.median(x)), 2) if isinstance(x, list) else x for k, x in row.items()} for row in spent]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/coplanner"))
    parser.add_argument("--collect", action="store_true", help="train nothing: write what the runs hold so far")
    parser.add_argument("--cost", action="store_true", help="measure updates and decisions alone")
    parser.add_argument("--cost-of-dyna", action="store_true", help="measure dreams and decisions from vectors alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--select", nargs="+", help="none acting both; --dmc: sac plain coplanner")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--dmc", action="store_true", help="agents of vectors on cartpole_swingup instead of Glide")
    parser.add_argument("--out", type=Path, help="docs/results/coplanner_glide.json or coplanner_dmc.json")
    parser.add_argument("extra", nargs="*", help="further options of every run, after --")
    args = parser.parse_args()
    args.select = args.select or (list(VERSIONS) if args.dmc else ["none", "acting", "both"])
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg()}
    command = " ".join(["python", "tools/coplanner.py", *sys.argv[1:]])
    if args.cost:
        what = "coplanner --task glide, one thread, processor milliseconds, medians of blocks in turn"
        document = {
            "command": command, "what": what, "machine": machine, "provenance": provenance(), "rows": cost()
        }
        (ROOT / "docs/results/coplanner_cost.json").write_text(json.dumps(document, indent=1) + "\n")
        print(*document["rows"], sep="\n")
        return 0
    if args.cost_of_dyna:
        what = "dyna --version mbpo|coplanner, one thread, processor milliseconds, medians of blocks in turn"
        document = {
            "command": command, "what": what, "machine": machine, "provenance": provenance(), "rows": cost_of_dyna()
        }
        (ROOT / "docs/results/coplanner_dyna_cost.json").write_text(json.dumps(document, indent=1) + "\n")
        print(*document["rows"], sep="\n")
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds if not args.collect else ():
        for select in args.select:
            train(args, select, seed)
    if args.dmc and not (args.folder / "sac-0" / "cost.json").exists():
        raise SystemExit(f"{args.folder} has no finished sac-0, along which models are asked; give --select sac first")
    said = {
        "what": "coplanner --task glide --env.course upwind: Dreamer with an idle ensemble (none), optimistic when it "
        "acts (acting), and conservative in dreams too (both); random play 0.06, expert 37.6",
        "evaluation": "50 episodes by the mode of the policy, which is the plain policy in all of them",
        "checkpoints": "raw disagreement over an expert's steps: left of 0.2 (where episodes begin), to 0.5, beyond",
    }
    ask: Callable[[Path], dict[str, float] | None] = unsure
    if args.dmc:
        ask = along(list(collect.play_agent(args.folder / "sac-0", episodes=4, explore=True, seed=1, device="cpu")))
        said = {
            "what": "dyna --env dmc:cartpole_swingup: SAC, FTFL (plain) and COPlanner on it, in all else alike",
            "commands": {
                select: " ".join([*preset(args, select)[0], "--train.steps", str(args.steps), *args.extra])
                for select in VERSIONS
            },
            "evaluation": "5 episodes by the mode of the policy, which is the plain policy in all of them",
            "checkpoints": " ".join((along.__doc__ or "").split()),
        }
    there = [(select, seed) for seed in args.seeds for select in args.select]
    if args.collect:
        there = [run for run in there if (args.folder / "-".join(map(str, run)) / "scores.jsonl").exists()]
    found = [result(args.folder, select, seed, ask) for select, seed in there]
    document = {"command": command, **said, "machine": machine, "provenance": provenance(), "runs": found}
    out = args.out or ROOT / "docs" / "results" / f"coplanner_{'dmc' if args.dmc else 'glide'}.json"
    out.write_text(json.dumps(document, indent=1) + "\n")
    for run in found:
        print(run["select"], run["seed"], run["cpu_seconds"], "s", run["returns_by_mode"][-1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
