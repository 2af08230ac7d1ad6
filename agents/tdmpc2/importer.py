"""Checkpoints of nicklashansen/tdmpc2 in our agent: names, layouts and the order of observations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.agents.tdmpc2.agent import TDMPC2
from worldmodel.errors import CheckpointError

_HEADS = {"_dynamics": "model.dynamics", "_reward": "model.reward", "_termination": "model.ends", "_pi": "policy.net"}
_ENSEMBLES = {"_Qs": "value.fast", "_target_Qs": "value.slow"}
_OLD = ("weight", "bias", "ln.weight", "ln.bias")
"""What numbers stand for in checkpoints from before the end of 2024: ``_Qs.params.5`` is layer 1's bias."""


def load_official(agent: TDMPC2, source: Path | Mapping[str, Any], *, order: Sequence[str] = ()) -> None:
    """Put the weights of an official single-task checkpoint into ``agent``; optimisers and the scale of values stay.

    Args:
        agent: of the checkpoint's size; its replay's observations are sorted by key.
        source: the ``.pt`` file, of which only tensors are read, or its state dict.
        order: keys of the observation in the checkpoint's order, where it is not the sorted one: dm_control's
            (walker: "orientations", "height", "velocity").
    Raises: CheckpointError where it is not such a file, or of another architecture.
    """
    state = _read(source) if isinstance(source, Path) else source
    given = translated(state.get("model", state))
    mine = agent.modules.state_dict()
    first = "model.encoder.mlp.0.linear.weight"
    if order and first in given:
        given[first] = given[first][:, _columns(agent, order)]
    kept = {name for name in mine if name.startswith("spread.")}
    wrong = [f"{n} {tuple(x.shape)}" for n, x in given.items() if n not in mine or mine[n].shape != x.shape]
    missing = sorted(mine.keys() - given.keys() - kept)
    if wrong or missing:
        raise CheckpointError(
            f"this checkpoint is of another architecture: {len(wrong)} tensors do not fit (the first: "
            f"{(wrong or ['none'])[0]}), {len(missing)} are missing (the first: {(missing or ['none'])[0]}); build the "
            f"agent in its size, with ends='predicted' where it was trained with episodic=true"
        )
    # in place: compiled callables and flat buffers stay valid
    agent.modules.load_state_dict({name: given.get(name, x) for name, x in mine.items()})


def translated(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Their names and layouts to those of ``TDMPC2.modules``."""
    out: dict[str, Tensor] = {}
    states = [int(m[1]) for m in (re.match(r"_encoder\.state\.(\d+)\.weight", name) for name in state) if m]
    for name, x in state.items():
        if not isinstance(x, Tensor):
            continue
        head, _, rest = name.partition(".")
        if m := re.fullmatch(r"_encoder\.state\.(\d+)\.(.+)", name):
            layer = int(m[1])
            where = "model.project" if layer == max(states) else f"model.encoder.mlp.{layer}"
            out[f"{where}.{_normed(m[2])}"] = x
        elif m := re.fullmatch(r"_encoder\.rgb\.(\d+)\.(weight|bias)", name):
            # shift and scaling come first, and a ReLU follows each convolution
            out[f"model.encoder.image.convs.{(int(m[1]) - 2) // 2}.{m[2]}"] = x
        elif head in _HEADS:
            layer, _, what = rest.partition(".")
            last = f"{head}.{int(layer) + 1}.weight" not in state and head != "_dynamics"
            out[f"{_HEADS[head]}.{layer}.{what if last else _normed(what)}"] = x
        elif m := re.fullmatch(r"(_Qs|_target_Qs)[._]params\.(.+)", name):
            out |= _member(_ENSEMBLES[m[1]], m[2], x)
    return out


def _normed(what: str) -> str:
    return what.replace("ln.", "norm.") if what.startswith("ln.") else f"linear.{what}"


def _member(ensemble: str, what: str, x: Tensor) -> dict[str, Tensor]:
    """One stacked parameter of the Q-functions; their weights are (E, out, in)."""
    if what.isdigit():
        what = f"{int(what) // 4}.{_OLD[int(what) % 4]}"
    layer, _, kind = what.partition(".")
    if kind.startswith("ln."):
        return {f"{ensemble}.norms.{layer}.{'scale' if kind == 'ln.weight' else 'shift'}": x}
    return {f"{ensemble}.layers.{layer}.{kind}": x.mT if kind == "weight" else x}


def _columns(agent: TDMPC2, order: Sequence[str]) -> list[int]:
    """Which column of theirs each of our inputs is."""
    specs = agent.model.encoder.specs
    if sorted(order) != sorted(agent.model.encoder.vector_keys):
        raise CheckpointError(
            f"order must name the observations {agent.model.encoder.vector_keys}, got {list(order)}"
        )
    begin, at = {}, 0
    for key in order:
        begin[key] = at
        at += torch.Size(specs[key].shape).numel()
    return [begin[key] + i for key in sorted(order) for i in range(torch.Size(specs[key].shape).numel())]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}; check the path") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is no checkpoint of tensors ({type(error).__name__}); files that need code to be read are refused"
        ) from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected a state dict of TD-MPC2")
    return found
