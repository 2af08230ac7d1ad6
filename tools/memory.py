"""What a core remembers: its world model alone learns from random play of Recall, then says what it expects.

    python tools/memory.py recall64 --delay 64 --updates 2000 --cores mamba transformer --set free_nats=0

Sequences are two episodes long, so that each holds a whole one. Asked are episodes that were not learned from, one step
before their end, for each of the four answers: "remembered" is the share of dreamed last pictures that are nearest to
the right disc, "right" the share of episodes in which the right answer is expected to be paid best; chance is 0.25.
What it writes, docs/results/memory_NAME.json, holds these by updates and processor seconds, with command, commit,
machine and seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.configs.sizes import NANO_CORES, dreamer
from worldmodel.envs.toys import ToyConfig
from worldmodel.models.cores.transformer import TransformerConfig
from worldmodel.nn.optim import LaProp
from worldmodel.train.manifest import provenance
from worldmodel.train.memory import keep_freed_memory
from worldmodel.types import Batch, EnvSpec

ROWS, EPISODES, ASKED = 16, 24, 4
"""Games side by side; of each so many episodes, the last of which are asked about."""
SAMPLES = 4
"""Dreams of an answer."""


class Play:
    """Random play, (ROWS, steps, ...), in which every episode takes ``span`` steps."""

    def __init__(self, delay: int, seed: int) -> None:
        toys = ToyConfig(task="recall", delay=delay).build_batch(ROWS)
        self.spec: EnvSpec = toys.spec
        self.span = self.spec.max_steps + 1
        self.rng = np.random.default_rng(seed)
        rows: dict[str, list[np.ndarray]] = {}
        step, prev = toys.reset(seed), np.zeros((ROWS, 4), np.float32)
        self.cues = []
        for _ in range(self.span * EPISODES):
            prev[step.is_first] = 0
            action = np.eye(4, dtype=np.float32)[self.rng.integers(4, size=ROWS)]
            action[step.is_last] = 0
            now = {"image": step.obs["image"], "action": action, "prev_action": prev}
            now |= {name: getattr(step, name) for name in ("reward", "is_first", "is_last", "is_terminal")}
            for key, x in now.items():
                rows.setdefault(key, []).append(x.copy())
            self.cues.append(toys.task.state["cue"].copy())
            step, prev = toys.step(action), action
        self.data = {key: torch.from_numpy(np.stack(x, 1)) for key, x in rows.items()}

    def cut(self, row: np.ndarray, at: np.ndarray, length: int) -> Batch:
        """Sequences that begin at steps ``at`` of these rows, (B, length, ...)."""
        index = torch.from_numpy(row)[:, None], torch.from_numpy(at)[:, None] + torch.arange(length)
        cut = {key: x[index] for key, x in self.data.items()}
        return Batch(obs={"image": cut.pop("image")}, **cut)

    def draw(self, batch: int, length: int) -> Batch:
        """From anywhere before the episodes that are asked about."""
        last = self.span * (EPISODES - ASKED) - length
        return self.cut(self.rng.integers(ROWS, size=batch), self.rng.integers(last + 1, size=batch), length)

    def questions(self) -> tuple[Batch, Tensor, Tensor]:
        """Episodes up to the question, their cues (N,), and the four last pictures (4, h, w, C) in [0, 1]."""
        row = np.repeat(np.arange(ROWS), ASKED)
        at = np.tile(np.arange(EPISODES - ASKED, EPISODES) * self.span, ROWS)
        cue = np.stack(self.cues, 1)[row, at]
        ends = self.data["image"][torch.from_numpy(row), torch.from_numpy(at + self.span - 1)].float() / 255
        discs = torch.stack([ends[int(np.flatnonzero(cue == k)[0])] for k in range(4)])
        return self.cut(row, at, self.span - 1), torch.from_numpy(cue), discs


@torch.no_grad()
def ask(model: Any, play: Play) -> dict[str, float]:
    """See the module."""
    batch, cue, discs = play.questions()
    seen = model.observe(model.initial(len(cue)), batch.obs, batch.prev_action, batch.is_first)
    state = tree.index(seen, (slice(None), -1))
    paid, shown = [], []
    for answer in torch.eye(4):
        action = answer.expand(len(cue), 4)
        after = [model.step(state, action) for _ in range(SAMPLES)]
        paid.append(torch.stack([model.predict(state, action, x).reward for x in after]).mean(0))
        pictures = torch.stack([model.decode(x)["image"] for x in after])
        off = (pictures.unsqueeze(2) - discs).square().flatten(3).sum(-1)
        shown.append((off.argmin(-1) == cue).float().mean())
    right = torch.stack(paid, 1).argmax(1) == cue
    return {
        "remembered": round(float(torch.stack(shown).mean()), 3), "right": round(float(right.float().mean()), 3)
    }


def learn(core: str, args: argparse.Namespace) -> dict[str, Any]:
    """The curve of one core."""
    play = Play(args.delay, args.seed)
    nano = dreamer("nano", core=core, lr=3e-3)
    changes = {key: json.loads(value) for key, value in (x.split("=", 1) for x in args.set)}
    model_config = dataclasses.replace(nano.model, **changes)
    if isinstance(model_config.core, TransformerConfig):
        window = max(model_config.core.window, play.span + 1)
        model_config = dataclasses.replace(model_config, core=dataclasses.replace(model_config.core, window=window))
    torch.manual_seed(args.seed)
    model = model_config.build(play.spec)
    optimizer = LaProp(model.parameters(), lr=nano.lr, clip=nano.clip, warmup=nano.warmup)
    length = 2 * play.span
    batch_size = max(1, round(args.tokens / length))
    curve, start, asking = [], time.process_time(), 0.0
    for update in range(1, args.updates + 1):
        losses, _ = model.loss(play.draw(batch_size, length), model.initial(batch_size))
        total = torch.stack([model.loss_scales[name] * x.mean() for name, x in losses.items()]).sum()
        optimizer.backward(total)
        optimizer.step(torch.isfinite(total))
        if update % args.every == 0 or update == args.updates:
            spent = time.process_time() - start - asking
            point = {"updates": update, "cpu_seconds": round(spent, 1), **ask(model, play)}
            asking += time.process_time() - start - asking - spent
            curve.append(point)
            print(core, point, flush=True)
            if point["right"] == 1.0 or spent > args.seconds:
                break
    return {"batch": [batch_size, length], "model": changes, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--cores", nargs="+", default=list(NANO_CORES), choices=list(NANO_CORES))
    parser.add_argument("--delay", type=int, default=64)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=900, help="of the processor, for each core")
    parser.add_argument("--tokens", type=int, default=536, help="steps of a batch, about")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help="fields of LatentModelConfig")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    result: dict[str, Any] = {
        "command": "python tools/memory.py " + " ".join(sys.argv[1:]), **provenance(),
        "machine": f"{platform.processor() or platform.machine()}, 1 thread", "seed": args.seed, "chance": 0.25,
        "cores": {},
    }
    out = Path(__file__).resolve().parents[1] / "docs" / "results" / f"memory_{args.name}.json"
    for core in args.cores:
        result["cores"][core] = learn(core, args)
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
