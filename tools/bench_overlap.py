"""One turn of the training loop with environments in processes: waiting for them before the update, or after it.

    python tools/bench_overlap.py --task walker_walk --render gl --out docs/results/overlap_cpu.json

A turn is: act, remember, one update, a step of all environments. Both orders share one agent, pool and replay, and
their blocks alternate. "ratio" and "paired" are the overlapped turn over the other; below 1 it is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from worldmodel import presets
from worldmodel.bench.setup import Bench, build_agent, conditions, filled_replay, load, write
from worldmodel.bench.timing import HostClock, Plan, alternate, ratios, subject, summary
from worldmodel.envs.pool import Pool, make_pool


def turns(bench: Bench, pool: Pool) -> dict[str, Callable[[], object]]:
    """The loop's turn in both orders, over one agent, pool and replay."""
    run = bench.run
    agent = build_agent(run, pool.spec, bench.device)
    replay = filled_replay(run.replay, pool.spec, agent, pool.num_envs, bench.held, device=bench.device, seed=run.seed)
    step, carry = pool.reset(run.seed), agent.initial(pool.num_envs)

    def turn(*, overlap: bool) -> None:
        nonlocal step, carry
        action, carry = agent.act(carry, step, explore=True)
        pool.send(action)
        replay.add(step, action, agent.memory(carry))
        if not overlap:
            step = pool.receive()
        batch = replay.sample()
        replay.write_back(batch, agent.learn(batch))
        if overlap:
            step = pool.receive()

    return {"after": lambda: turn(overlap=False), "beside": lambda: turn(overlap=True)}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="walker_walk")
    parser.add_argument("--render", default="gl")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--envs", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs=2, default=(4, 32), metavar=("B", "T"))
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each order")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    run = presets.find_preset("dmc.vision").build({"task": args.task, "render": args.render, "size": args.size})
    run = dataclasses.replace(
        run,
        replay=dataclasses.replace(run.replay, batch_size=args.batch[0], length=args.batch[1]),
        train=dataclasses.replace(run.train, num_envs=args.envs, threads=1),
    )
    bench = Bench(run=run, plan=Plan(blocks=args.blocks, seconds=args.seconds), held=1000)
    document = {"command": " ".join(["python", "tools/bench_overlap.py", *sys.argv[1:]]), **conditions(bench)}
    pool = make_pool(run.env, args.envs, kind="process")
    try:
        calls = turns(bench, pool)
        blocks = alternate({name: subject(call, HostClock()) for name, call in calls.items()}, bench.plan)
    finally:
        pool.close()
    document |= {"load_after": load(), "torch": torch.__version__}
    document["rows"] = {name: summary(row) for name, row in blocks.items()}
    document["beside/after"] = ratios(blocks["beside"], blocks["after"])
    for name, row in document["rows"].items():
        print(f"{name}: {row['median_ms']} ms a turn, {1e3 * args.envs / row['median_ms']:.3g} decisions/s", flush=True)
    print(document["beside/after"])
    if args.out:
        write(args.out, document)


if __name__ == "__main__":
    main()
