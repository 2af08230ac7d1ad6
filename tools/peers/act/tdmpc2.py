"""nicklashansen/tdmpc2: ``TDMPC2.act`` at the sizes of one of our runs, for one environment after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tdmpc2_parts
import torch
from serving import Calls, serve


def setup(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], Calls]:
    """Build its agent, and a call for each number of environments."""
    warnings.simplefilter("ignore")
    agent, config = tdmpc2_parts.made(folder, request)
    obs = torch.randn(config.obs_shape["state"])

    def act(count: int) -> Callable[[], object]:
        def call() -> None:
            for _ in range(count):
                agent.act(obs, t0=False, eval_mode=True)

        return call

    told = tdmpc2_parts.facts(folder, agent, config)
    told["settings"] += ", one environment after another"
    return told, {f"{n} environments": act(n) for n in request["batches"]}


if __name__ == "__main__":
    serve(setup)
