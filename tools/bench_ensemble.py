"""Fitting an ensemble of dynamics, ours and OfflineRL-Kit's, at the same sizes on the same data, in alternating blocks.

    git clone https://github.com/yihaosun1124/OfflineRL-Kit ../OfflineRL-Kit
    python tools/bench_ensemble.py --against ../OfflineRL-Kit --out docs/results/ensemble_cpu.json

"update" is one step of all members on 256 rows each; "rounds" is a fit of a few rounds over all transitions, with
shuffling, held-out data and the choice of elites. Sizes are those of HalfCheetah (17 features, 6 actions). Ratios are
ours over theirs: below 1 ours is faster, and throughput is its inverse. Without --against ours alone is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.bench.peers import Peer, find_adapter
from worldmodel.bench.setup import load, surroundings, write
from worldmodel.bench.timing import Plan, Subject, alternate, clock_of, ratios, subject, summary
from worldmodel.models.ensemble import EnsembleModel, EnsembleModelConfig
from worldmodel.nn.optim import Adam
from worldmodel.train.memory import keep_freed_memory
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec, Transitions

SPEC = EnvSpec(
    name="halfcheetah-like", obs={"vector": ArraySpec(shape=(17,), dtype="float32")},
    action=ActionSpec(kind="continuous", size=6),
)
HOLDOUT = 0.1


def transitions(count: int) -> Transitions:
    """Of a random linear system with noise."""
    g = torch.Generator().manual_seed(0)
    x, action = torch.randn(count, 17, generator=g), torch.rand(count, 6, generator=g) * 2 - 1
    drift, push = 0.1 * torch.randn(17, 17, generator=g), torch.randn(6, 17, generator=g)
    next_x = x + x @ drift + action @ push + 0.1 * torch.randn(count, 17, generator=g)
    zero = torch.zeros(count)
    return Transitions(x=x, action=action, reward=x[:, 0], next_x=next_x, terminal=zero, edge=zero)


def ours(model: EnsembleModel, data: Transitions, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """A call for every row."""
    members = model.config.members
    data = Transitions(**{name: x.to(device) for name, x in vars(data).items()})
    inputs, targets = both(data)
    shaped: Callable[[Tensor], Tensor] = lambda x: x[: members * batch].view(members, batch, -1)  # noqa: E731
    optimizer = Adam([(model.parameters(), model.config.lr)])
    held = torch.arange(len(data.reward), device=device) % round(1 / HOLDOUT) == 0
    return {
        "rounds": functools.partial(model.fit, data, held),
        "update": functools.partial(model.update, optimizer, shaped(inputs), shaped(targets)),
    }


def both(data: Transitions) -> tuple[Tensor, Tensor]:
    """Inputs and what is learned of them."""
    reward = data.reward.unsqueeze(-1)
    return torch.cat([data.x, data.action], -1), torch.cat([data.next_x - data.x, reward], -1)


def request(config: EnsembleModelConfig, data: Transitions, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the peer is told: sizes, and where the same data lie."""
    path = folder / "data.npz"
    inputs, targets = both(data)
    np.savez(
        path, observations=data.x, actions=data.action, next_observations=data.next_x,
        rewards=data.reward.unsqueeze(-1), inputs=inputs, targets=targets,
    )
    return {
        "do": "setup", "device": args.device, "threads": args.threads, "data": str(path), "features": 17, "actions": 6,
        "units": list(config.units), "members": config.members, "elites": config.elites,
        "decays": list(config.decays), "lr": config.lr, "batch": args.batch, "rounds": args.rounds, "holdout": HOLDOUT,
    }


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout of OfflineRL-Kit")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--transitions", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row of each")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = EnsembleModelConfig(batch_size=args.batch, max_rounds=args.rounds, patience=args.rounds + 1)
    model, data = config.build(SPEC).to(args.device), transitions(args.transitions)
    clock, plan = clock_of(torch.device(args.device)), Plan(blocks=args.blocks, seconds=args.seconds)
    document = {"command": " ".join(["python", "tools/bench_ensemble.py", *sys.argv[1:]])}
    document |= surroundings(torch.device(args.device))
    document |= {
        "transitions": args.transitions, "batch": args.batch, "rounds": args.rounds,
        "parameters": sum(p.numel() for p in model.parameters()), "rows": {}, "ratios": {},
    }
    calls = ours(model, data, args.batch, args.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        peer: Peer | None = None
        if args.against:
            adapter = find_adapter(args.against, "ensemble")
            peer = stack.enter_context(Peer(adapter, args.against, args.peer_python))
            document["peer"] = {"name": peer.name, **peer.ask(request(config, data, Path(folder), args))}
        for row in ("update", "rounds"):
            subjects: dict[str, Subject] = {"ours": subject(calls[row], clock)}
            if peer is not None:
                subjects["theirs"] = peer.subject(row)
            blocks = alternate(subjects, plan)
            document["rows"][row] = {name: summary(of) for name, of in blocks.items()}
            if peer is not None:
                document["ratios"][row] = ratios(blocks["ours"], blocks["theirs"])
            print(row, {name: s["median_ms"] for name, s in document["rows"][row].items()},
                  document["ratios"].get(row, ""), flush=True)
    document["load_at_end"] = load()
    if args.out:
        write(args.out, document)


if __name__ == "__main__":
    main()
