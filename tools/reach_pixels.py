"""Truncated dreams from pixels: Glide, fixed data of a good player, a latent model that is learned first and then kept.

    python tools/reach_pixels.py --folder runs/reach_pixels --seeds 0 1 2

For each seed: episodes of an expert one of whose actions in five is random; a world model learned from them alone; and
in it, kept as it is, a policy and a critic by each variant. Looked at are the return in the true environment and the
bias: what the critic says of first pictures, less the discounted return that the policy then gets (episodes without
their time limit). Writes docs/results/reach_pixels.json; what is in the folder is kept, so the command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.agents.dreamer.agent import Dreamer, DreamerConfig
from worldmodel.agents.values.reach import ReachConfig
from worldmodel.agents.values.reach_aware import ReachAwareValue, ReachAwareValueConfig
from worldmodel.configs.quickstart import quickstart
from worldmodel.envs.pool import to_step
from worldmodel.envs.toys.base import ToyBatch, ToyConfig, expert
from worldmodel.rng import Stream
from worldmodel.train.manifest import provenance
from worldmodel.types import Batch

ROOT = Path(__file__).resolve().parent.parent
GLIDE = ToyConfig(task="glide")
EPISODES, STEPS, LENGTH, ROWS = 200, 50, 16, 16
NOTES = 5
"""Times in a run that it is looked at."""
FAR = 150
"""Steps after which discounted rewards are left out: 1 - 1/30 to this power is 0.006."""


@dataclass(frozen=True)
class Patched:
    """A critic whose truncated bootstraps are what an expert would get from there."""

    inner: ReachAwareValueConfig
    oracle: nn.Module = field(compare=False)

    def build(self, feature_dim: int) -> ReachAwareValue:
        learner = self.inner.build(feature_dim)
        oracle = self.oracle
        learner.truncated = lambda features: oracle(features.float()).squeeze(-1)  # type: ignore[method-assign]
        return learner


def variants(oracle: nn.Module) -> dict[str, tuple[str, Any, int]]:
    """What it is, the critic, and how many steps dreams have."""
    plain = ReachAwareValueConfig(members=1, units=(128, 128), norm="none", reach=ReachConfig(detector="none"))
    ravl = replace(plain, members=10, pessimism="min", where="everywhere")
    return {
        "base": ("5 steps, one critic", plain, 5),
        "layernorm": ("with LayerNorm", replace(plain, norm="layer"), 5),
        "ravl": ("min of 10 in every target", ravl, 5),
        "ravl_layer": ("min of 10, with LayerNorm", replace(ravl, norm="layer"), 5),
        "reach": (
            "ours: two with LayerNorm, detector at the cut",
            replace(plain, members=2, norm="layer", reach=ReachConfig(detector="knn")), 5,
        ),
        "h15": ("15 steps, one critic", plain, 15),
        "patch": ("an expert's value at the cut", Patched(plain, oracle), 5),
    }


def agent_of(learns: Any, seed: int, *, value: Any = None, imagination: int = 10) -> Dreamer:
    """The quickstart's agent for Glide, with this critic and so long dreams."""
    config: DreamerConfig = replace(quickstart("glide").agent, learns=learns, imagination=imagination, warmup=100)
    if value is not None:
        config = replace(config, value=value, lr=1e-3)
    return config.build(GLIDE.build_batch(1).spec, seed=seed)


def played(seed: int, *, random: float, episodes: int = EPISODES) -> tuple[Batch, dict[str, np.ndarray]]:
    """Episodes (N, T) of an expert with so many random actions, and the truth behind them, (N, T, 2) each."""
    toys, rng = GLIDE.build_batch(episodes), np.random.default_rng(seed)
    step = toys.reset(seed)
    steps, actions, truth = [step], [], {key: [toys.task.state[key].copy()] for key in ("place", "speed", "target")}
    for _ in range(STEPS):
        noise = rng.uniform(-1, 1, (episodes, 2)).astype(np.float32)
        action = np.where(rng.uniform(size=(episodes, 1)) < random, noise, expert(toys)).astype(np.float32)
        step = toys.step(action)
        steps.append(step)
        actions.append(action)
        for key, rows in truth.items():
            rows.append(toys.task.state[key].copy())
    none = np.zeros_like(actions[0])

    def stacked(rows: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(rows, 1).copy())

    batch = Batch(
        obs={"image": stacked([s.obs["image"] for s in steps])}, action=stacked([*actions, none]),
        prev_action=stacked([none, *actions]), reward=stacked([s.reward for s in steps]),
        is_first=stacked([s.is_first for s in steps]), is_last=stacked([s.is_last for s in steps]),
        is_terminal=stacked([s.is_terminal for s in steps]),
    )
    return batch, {key: np.stack(rows, 1) for key, rows in truth.items()}


def drawn(data: Batch, generator: torch.Generator) -> Batch:
    """(ROWS, LENGTH) stretches of the data."""
    row = torch.randint(len(data.reward), (ROWS, 1), generator=generator)
    start = torch.randint(data.reward.shape[1] - LENGTH + 1, (ROWS, 1), generator=generator)
    batch = tree.index(data, (row, start + torch.arange(LENGTH)))
    return replace(batch, is_first=torch.cat([torch.ones(ROWS, 1, dtype=torch.bool), batch.is_first[:, 1:]], 1))


def forever(toys: ToyBatch) -> None:
    """No time limit: what is valued is not what is left of an episode."""
    toys.task.state["tick"][:] = 0


def experts_worth(truth: dict[str, np.ndarray], discount: float) -> Tensor:
    """(N,) discounted returns of the expert from states (N, 2) each."""
    toys = GLIDE.build_batch(len(truth["place"]))
    toys.reset(0)
    for key, x in truth.items():
        toys.task.state[key][:] = x
    total, weight = np.zeros(toys.num_envs), 1.0
    for _ in range(FAR):
        forever(toys)
        reward, _, _ = toys.task.advance(expert(toys))
        total, weight = total + weight * reward, weight * discount
    return torch.from_numpy(total).float()


def oracle(agent: Dreamer, seed: int) -> nn.Module:
    """A network from features to the expert's worth, taught in all of the room."""
    torch.manual_seed(seed)
    parts = [played(7000 + 10 * seed + at, random=share) for at, share in enumerate((0.1, 0.5, 1.0))]
    features, worth = [], []
    for batch, truth in parts:
        with torch.no_grad(), Stream(seed=seed):
            states = agent.model.observe(
                agent.model.initial(len(batch.reward)), batch.obs, batch.prev_action, batch.is_first
            )
        features.append(agent.model.features(states).flatten(0, 1))
        worth.append(experts_worth({key: x.reshape(-1, 2) for key, x in truth.items()}, agent.discount))
    x, y = torch.cat(features), torch.cat(worth)
    net = nn.Sequential(nn.Linear(x.shape[1], 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(2000):
        at = torch.randint(len(x), (256,))
        loss = (net(x[at]).squeeze(-1) - y[at]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.requires_grad_(False)


@torch.no_grad()
def look(agent: Dreamer) -> dict[str, float]:
    """Return of an episode by the mode, and what the critic said at its start."""
    toys = GLIDE.build_batch(100)
    step, carry = toys.reset(10_000), agent.initial(100)
    total, discounted, weight, belief = np.zeros(100), np.zeros(100), 1.0, 0.0
    for at in range(FAR):
        action, carry = agent.act(carry, to_step(step), explore=False)
        if at == 0:
            belief = float(agent.worth(agent.model.features(carry.state)).mean())
        forever(toys)
        step = toys.step(action.numpy())
        total += step.reward * (at < STEPS)
        discounted, weight = discounted + weight * step.reward, weight * agent.discount
    true = float(discounted.mean())
    return {"return": float(total.mean()), "belief": belief, "true": true, "bias": belief - true}


def learned_model(folder: Path, seed: int, updates: int, random: float, data: Batch) -> Dreamer:
    """The world model of a seed, learned or as it was kept."""
    agent, path = agent_of("model", seed), folder / f"model-{seed}-{updates}-{random:g}.safetensors"
    if path.exists():
        agent.load_state_dict(load_file(path))
        return agent
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        agent.learn(drawn(data, generator))
    save_file({key: x.contiguous() for key, x in agent.state_dict().items()}, path)
    return agent


def run(world: Dreamer, variant: tuple[str, Any, int], seed: int, updates: int, data: Batch) -> dict[str, Any]:
    """One behaviour, learned and looked at."""
    start = time.process_time()
    said, value, imagination = variant
    agent = agent_of("behaviour", seed, value=value, imagination=imagination)
    agent.model.load_state_dict(world.model.state_dict())
    generator, curve, metrics = torch.Generator().manual_seed(seed), [], {}
    for update in range(1, updates + 1):
        metrics = agent.learn(drawn(data, generator)).metrics
        if update % (updates // NOTES) == 0:
            told = {key: float(metrics[key]) for key in ("value/mean", "imagination/reward")}
            curve.append({"update": update, **look(agent), **told})
    return {"said": said, "curve": curve, "cpu_seconds": round(time.process_time() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/reach_pixels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=[])
    parser.add_argument("--model-updates", type=int, default=3000)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--random", type=float, default=0.2, help="share of the data's actions that are random")
    parser.add_argument("--collect", action="store_true", help="train nothing: write what the folder holds")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "reach_pixels.json")
    args = parser.parse_args()
    names = list(variants(nn.Identity()))
    wrong = [name for name in args.variants if name not in names]
    if wrong:
        parser.error(f"unknown variant {wrong[0]!r}; there are {', '.join(names)}")
    if args.updates < NOTES or args.updates % NOTES:
        parser.error(f"--updates must be a multiple of {NOTES}, got {args.updates}")
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_updates": args.model_updates, "updates": args.updates, "random": args.random}
    for seed in () if args.collect else args.seeds:
        missing = {}
        for name in args.variants or names:
            path = args.folder / f"{name}-{seed}.json"
            if not path.exists():
                missing[name] = path
            elif json.loads(path.read_text())["settings"] != settings:
                parser.error(f"{path} is of other settings than {settings}; give another --folder")
        if not missing:
            continue
        data, _ = played(seed, random=args.random)
        world = learned_model(args.folder, seed, args.model_updates, args.random, data)
        known = variants(oracle(world, seed))
        for name, path in missing.items():
            found = run(world, known[name], seed, args.updates, data)
            found |= {"variant": name, "seed": seed, "commit": provenance()["commit"], "settings": settings}
            found["data_return"] = round(float(data.reward.sum(1).mean()), 3)
            path.write_text(json.dumps(found, indent=1) + "\n")
            last = found["curve"][-1]
            print(f"{name} {seed}: return {last['return']:.2f}, bias {last['bias']:+.2f}, {found['cpu_seconds']} s")
    cells = [json.loads(path.read_text()) for path in sorted(args.folder.glob("*-*.json"))]
    document = {
        "command": shlex.join(["python", "tools/reach_pixels.py", *sys.argv[1:]]),
        "what": "Glide from 32 x 32 pixels, fixed data, a latent model learned first and then kept; return of 50 steps "
        "(expert 44.9, random 5.6) and bias at the start by the mode, 100 episodes; values are at most 30",
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        "provenance": provenance(),
        "runs": cells,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
