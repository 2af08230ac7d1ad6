"""What CQL's term does to critic and policy, apart: Pendulum, the data of tools/offline_online.py.

    python tools/cql_study.py --variants term none fast --updates 2500

At halves of a run the agent is evaluated by the mode of its policy, by samples, and greedily in its critic (the best of
21 actions), beside what the critic says of the data's actions, the policy's and random ones. Where greedy is good and
the policy is not, it is not the critic's term that fails. Writes docs/results/cql_study.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import collect
from worldmodel.agents.dyna.agent import Dyna, DynaConfig
from worldmodel.agents.dyna.pessimism import ConservatismConfig
from worldmodel.agents.dyna.policy import PolicyConfig, TemperatureConfig
from worldmodel.agents.dyna.rules.soft import SoftConfig
from worldmodel.agents.values.critics import CriticsConfig
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.pool import make_pool
from worldmodel.presets import load_module
from worldmodel.protocols import EnvPool
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.offline import fill_replay
from worldmodel.train.evaluate import evaluate
from worldmodel.train.hold import hold_all
from worldmodel.train.manifest import provenance

ROOT = Path(__file__).resolve().parent.parent
ENV = GymConfig(id="Pendulum-v1")
GRID = torch.linspace(-1, 1, 21).view(1, 21, 1)

VARIANTS: dict[str, dict[str, float]] = {
    "term": {"weight": 5.0}, "none": {"weight": 0.0},
    "term, alpha from 0.05": {"weight": 5.0, "alpha": 0.05}, "none, alpha from 0.05": {"weight": 0.0, "alpha": 0.05},
    "fast": {"weight": 5.0, "lr": 1e-3, "policy_lr": 1e-3},
    "none, fast": {"weight": 0.0, "lr": 1e-3, "policy_lr": 1e-3},
}


def build(weight: float, lr: float = 3e-4, policy_lr: float = 1e-4, alpha: float = 1.0) -> DynaConfig:
    """CQL with its authors' rates, small."""
    return DynaConfig(
        model=None, rule=SoftConfig(backup="plain", temperature=TemperatureConfig(initial=alpha)), lr=lr,
        policy_lr=policy_lr, conservatism=ConservatismConfig(weight=weight), batch_size=128, recent=50_000, first=1000,
        value=CriticsConfig(units=(64, 64), norm="layer"), policy=PolicyConfig(units=(64, 64)),
    )


def every_action(agent: Dyna, x: Tensor) -> Tensor:
    """(N, F) -> (N, 21) Q over the grid."""
    return agent.value.value(x.unsqueeze(1).expand(-1, 21, -1), GRID.expand(len(x), -1, -1))


@torch.no_grad()
def look(agent: Dyna, pool: EnvPool, episodes: int) -> dict[str, float]:
    """What the policy, its samples and the critic alone achieve, and what the critic says."""
    def greedy(carry: None, step: Any, explore: bool) -> tuple[Tensor, None]:
        return GRID[0, every_action(agent, step.obs["vector"].float()).argmax(1)], None

    critic: Any = SimpleNamespace(initial=lambda count, seed: None, act=greedy)
    scores = {
        name: evaluate(who, pool, episodes=episodes, explore=explore, seed=7).mean
        for name, who, explore in (("mode", agent, False), ("sampled", agent, True), ("greedy", critic, False))
    }
    data = agent.seen.draw(2000)
    policy = agent.actor(data.x)
    asked = {"data": data.action, "policy": policy.sample(), "random": torch.rand_like(data.action) * 2 - 1}
    scores |= {f"q_{name}": float(agent.value.value(data.x, action).mean()) for name, action in asked.items()}
    spread = every_action(agent, data.x)
    scores["q_spread"] = float((spread.amax(1) - spread.amin(1)).mean())
    return scores


def study(variant: str, seed: int, pool: EnvPool, replay: Any, args: argparse.Namespace) -> list[dict[str, float]]:
    """Points of one run."""
    agent, start = build(**VARIANTS[variant]).build(pool.spec, seed=seed), time.process_time()
    hold_all(agent, replay)
    batch, points = replay.sample(), []
    for update in range(1, args.updates + 1):
        metrics = agent.learn(batch).metrics
        if update % max(1, args.updates // 2) == 0:
            point = {"updates": update, **look(agent, pool, args.episodes)}
            point |= {name: float(metrics[f"actor/{name}"]) for name in ("entropy", "alpha")}
            point["cpu_seconds"] = time.process_time() - start
            points.append({name: round(x, 3) for name, x in point.items()})
            print(variant, seed, points[-1], flush=True)
    return points


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--episodes", type=int, default=10, help="of an evaluation, and as many environments")
    parser.add_argument("--data", type=int, default=50, help="episodes of data")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "cql_study.json")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    swing = load_module(str(ROOT / "tools" / "offline_online.py")).swing
    pool = make_pool(ENV, args.episodes, kind="serial")
    data = collect.play(ENV, swing, episodes=args.data)
    replay = fill_replay(
        data, ReplayConfig(batch_size=1, length=2), pool.spec, {}, device=torch.device("cpu"), seed=0
    )
    found: dict[str, Any] = {
        "command": shlex.join(["python", "tools/cql_study.py", *(sys.argv[1:] if words is None else words)]),
        "data": {"episodes": args.data, "return": round(float(np.mean([e.reward.sum() for e in data])), 1)},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": 1}, "provenance": provenance(),
        "runs": {},
    }
    for variant in args.variants:
        found["runs"][variant] = {
            **VARIANTS[variant], "seeds": {seed: study(variant, seed, pool, replay, args) for seed in args.seeds}
        }
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
