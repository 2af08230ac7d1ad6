"""From what a user names on the command line to a part, its kind, and its conformance test."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import torch

from worldmodel import presets
from worldmodel.check import core, objective, planner, value, world_model
from worldmodel.check.env import check_env
from worldmodel.check.report import Report
from worldmodel.check.samples import ActionKind, Seen, make_spec
from worldmodel.envs.gym import GymConfig
from worldmodel.errors import UserError, unknown
from worldmodel.types import EnvSpec

TAKES: dict[tuple[str, ...], str] = {
    ("spec",): "world-model",
    ("action_size", "token_size"): "core",
    ("feature_dim", "token_size", "make_decoder"): "objective",
    ("feature_dim",): "value",
    ("index",): "env",
    (): "env",
}
"""Kind by what ``build`` asks for."""
MEMBERS: dict[str, set[str]] = {
    "world-model": set(world_model.MEMBERS) - {"feature_dim", "loss_scales"},
    "core": {"initial", "observe", "step", "features", "pack", "unpack"},
    "value": set(value.MEMBERS),
    "env": {"spec", "reset", "step", "render", "close"},
}
"""Kind by the methods of what ``build`` is annotated to return; the first that fits."""
KINDS: dict[str, Callable[[Any, EnvSpec, str], Report]] = {
    "world-model": lambda config, spec, device: world_model.check_world_model(config, spec=spec, device=device),
    "core": lambda config, spec, device: core.check_core(config, device=device),
    "objective": lambda config, spec, device: objective.check_objective(config, device=device),
    "value": lambda config, spec, device: value.check_value_learner(config, device=device),
    "planner": lambda config, spec, device: planner.check_planner(config),
    "env": lambda config, spec, device: check_env(config),
}
ABSENT = "agents, encoders and decoders have no conformance test yet"


def check_target(
    target: str,
    *,
    kind: str = "",
    obs: Seen = "image",
    pixels: int = 32,
    action: ActionKind = "discrete",
    device: str = "cpu",
) -> Report:
    """The conformance test of "FILE:NAME", "pkg.mod:NAME" or a Gymnasium id.

    Args: kind: one of :data:`KINDS`; where it is empty, ``build`` tells. obs, pixels, action: what a world model shall
        observe and do.
    Raises: UserError where nothing is named that could be checked.
    """
    if kind and kind not in KINDS:
        raise UserError(f"{unknown('kind', kind, KINDS)}; {ABSENT}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; leave --device cpu, or ask `worldmodel doctor`")
    config = find(target)
    return KINDS[kind or kind_of(config)](config, make_spec(obs, pixels=pixels, action=action), device)


def find(target: str) -> Any:
    """The config that ``target`` names: an instance, a class made without arguments, or what a function returns."""
    where, colon, name = target.rpartition(":")
    if not colon:
        if target.endswith(".py") or Path(target).exists():
            raise UserError(f"{target} names nothing inside; write {target}:MyConfig for its class MyConfig")
        return _known(GymConfig(id=target))
    module = presets.load_module(where)
    if not name.isidentifier():
        return _known(GymConfig(id=f"{module.__name__}:{name}"))
    found = getattr(module, name, None)
    if found is None:
        own = [n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__]
        raise UserError(f"{where}: {unknown('name', name, (n for n in own if not n.startswith('_')))}")
    if isinstance(found, type) and issubclass(found, gymnasium.Env):
        return GymConfig(id=f"{module.__name__}:{name}")
    if inspect.isfunction(found) or (isinstance(found, type) and (hasattr(found, "build") or _plans(found))):
        try:
            made = found()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{target} cannot be made without arguments ({error}); give everything a default, or name an instance"
            ) from error
        if isinstance(made, gymnasium.Env):
            made.close()
            return GymConfig(id=f"{module.__name__}:{name}")
        found = made
    if isinstance(found, type) or not (callable(getattr(found, "build", None)) or _plans(type(found))):
        what = f"class {name}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise UserError(
            f"{target} is {what} without build(...); name the config that builds one part: {', '.join(KINDS)}; {ABSENT}"
        )
    return found


def _plans(kind: type) -> bool:
    """Whether it is a planner: numbers that can be called."""
    is_called = any("__call__" in vars(base) for base in kind.__mro__)
    return dataclasses.is_dataclass(kind) and is_called and hasattr(kind, "initial")


def _known(config: GymConfig) -> GymConfig:
    """Raises EnvError for an id that nobody registered: a mistake of who asks, and no broken promise."""
    config.make().close()
    return config


def kind_of(config: Any) -> str:
    """The kind of what a config builds, from what ``build`` takes, else from what it says to return."""
    if _plans(type(config)):
        return "planner"
    parameters = inspect.signature(config.build).parameters.values()
    asked = tuple(p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    is_agent = any(p.name == "device" for p in parameters)
    if asked in TAKES and not is_agent and (TAKES[asked] != "env" or hasattr(config, "name")):
        return TAKES[asked]
    try:
        returned = typing.get_type_hints(config.build).get("return")
    except NameError:  # a name that exists for type checkers only
        returned = None
    for kind, members in MEMBERS.items():
        if isinstance(returned, type) and members <= set(dir(returned)):
            return kind
    raise UserError(
        f"cannot tell what {type(config).__name__} builds from build({', '.join(p.name for p in parameters)}); say "
        f"--kind with "
        f"one of {', '.join(KINDS)}; {ABSENT}"
    )
