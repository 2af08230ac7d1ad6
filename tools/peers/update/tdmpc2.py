"""nicklashansen/tdmpc2: ``TDMPC2.update`` at the sizes of one of our runs."""

from __future__ import annotations

import importlib
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tdmpc2_parts
import torch
from serving import Calls, Refused, serve
from torch import Tensor


def setup(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], Calls]:
    """Build its agent, its batch and its replay."""
    warnings.simplefilter("ignore")
    length = request["run"]["replay"]["length"]
    agent, config = tdmpc2_parts.made(folder, request)
    if length != config.horizon + 1:
        raise Refused(
            f"it learns from as many steps as it plans, {config.horizon}, and one; add --replay.length "
            f"{config.horizon + 1}"
        )
    given = alike(request)
    fixed = types.SimpleNamespace(sample=lambda: given)
    replay = filled(request, config)
    told = tdmpc2_parts.facts(folder, agent, config)
    told["settings"] += f", {replay.num_eps * request['episode']} steps held"
    return told, {"learn": lambda: agent.update(fixed), "update": lambda: agent.update(replay)}


def alike(request: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    """Our batch (B, T, ...) as its replay gives one: (T, B, ...), and actions and rewards from the second step on."""
    given = np.load(request["batch"])
    names = sorted(name for name in given if name.startswith("obs/"))
    obs = torch.cat([torch.from_numpy(given[name]).flatten(2).float() for name in names], -1)
    after = [torch.from_numpy(given[name])[:, 1:].float() for name in ("prev_action", "reward", "is_terminal")]
    action, reward, terminal = (x.transpose(0, 1).contiguous() for x in after)
    where = request["device"]
    return (
        obs.transpose(0, 1).contiguous().to(where), action.to(where), reward.unsqueeze(-1).to(where),
        terminal.unsqueeze(-1).to(where), None,
    )


def filled(request: dict[str, Any], config: Any) -> Any:
    """Its replay with random episodes, as many steps as ours holds."""
    from tensordict import TensorDict

    steps = request["episode"]
    config.steps = max(request["held"], steps)
    replay = importlib.import_module("common.buffer").Buffer(config)
    for _ in range(max(1, request["held"] // steps)):
        replay.add(TensorDict({
            "obs": torch.randn(steps, *config.obs_shape["state"]),
            "action": torch.rand(steps, config.action_dim) * 2 - 1,
            "reward": torch.rand(steps), "terminated": torch.zeros(steps),
        }, (steps,)))
    return replay


if __name__ == "__main__":
    serve(setup)
