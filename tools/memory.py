"""What a world model remembers: agents that learned Recall are asked about episodes of several delays.

    python tools/memory.py RUN [RUN ...] --delays 4 16 64 --out docs/results/memory_recall.json

Asked one step before the end of an episode, for each of the four answers: "remembered" is the share of dreamed last
pictures that are nearest to the right disc, "right" the share of episodes in which the right answer is expected to be
paid best; chance is 0.25. A policy that answers wrong where both are 1 does not lack memory. The file holds these by
run and delay, with command, commit, machine and versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import runs, tree
from worldmodel.envs.toys import ToyConfig
from worldmodel.train.manifest import provenance
from worldmodel.types import EnvSpec

ASKED = 64
"""Games, one episode of each."""
SAMPLES = 4
"""Dreams of an answer."""


class Episodes:
    """Random play of Recall, (ASKED, span, ...), from first picture to last."""

    def __init__(self, delay: int, seed: int) -> None:
        toys = ToyConfig(task="recall", delay=delay).build_batch(ASKED)
        self.spec: EnvSpec = toys.spec
        self.span = self.spec.max_steps + 1
        rng = np.random.default_rng(seed)
        step, prev = toys.reset(seed), np.zeros((ASKED, 4), np.float32)
        rows: dict[str, list[np.ndarray]] = {}
        self.cue = torch.from_numpy(toys.task.state["cue"].copy())
        for _ in range(self.span):
            now = {"image": step.obs["image"], "prev_action": prev}
            now |= {key: getattr(step, key) for key in ("reward", "is_first", "is_last")}
            for key, x in now.items():
                rows.setdefault(key, []).append(x.copy())
            prev = np.eye(4, dtype=np.float32)[rng.integers(4, size=ASKED)]
            step = toys.step(prev)
        self.data = {key: torch.from_numpy(np.stack(values, 1)) for key, values in rows.items()}

    @property
    def discs(self) -> Tensor:
        """(4, h, w, C) in [0, 1], the last picture of each cue."""
        ends = self.data["image"][:, -1].float() / 255
        return torch.stack([ends[int((self.cue == k).nonzero()[0])] for k in range(4)])


@torch.no_grad()
def ask(model: Any, episodes: Episodes) -> dict[str, float]:
    """See the module."""
    seen = {key: x[:, :-1] for key, x in episodes.data.items()}
    states = model.observe(model.initial(ASKED), {"image": seen["image"]}, seen["prev_action"], seen["is_first"])
    state, discs, cue = tree.index(states, (slice(None), -1)), episodes.discs, episodes.cue
    paid, shown = [], []
    for answer in torch.eye(4):
        action = answer.expand(ASKED, 4)
        after = [model.step(state, action) for _ in range(SAMPLES)]
        paid.append(torch.stack([model.predict(state, action, x).reward for x in after]).mean(0))
        pictures = torch.stack([model.decode(x)["image"] for x in after])
        off = (pictures.unsqueeze(2) - discs).square().flatten(3).sum(-1)
        shown.append((off.argmin(-1) == cue).float().mean())
    right = torch.stack(paid, 1).argmax(1) == cue
    return {
        "remembered": round(float(torch.stack(shown).mean()), 3), "right": round(float(right.float().mean()), 3)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--delays", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    asked = {delay: Episodes(delay, args.seed) for delay in args.delays}
    result: dict[str, Any] = {
        "command": "python tools/memory.py " + " ".join(sys.argv[1:]), **provenance(),
        "machine": platform.processor() or platform.machine(), "seed": args.seed, "chance": 0.25, "runs": {},
    }
    for folder in args.runs:
        trained = runs.load(folder, device="cpu")
        found = {str(delay): ask(trained.agent.model, episodes) for delay, episodes in asked.items()}
        print(folder, trained.checkpoint.step, found)
        result["runs"][str(folder)] = {"decisions": trained.checkpoint.step, "by_delay": found}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
