"""Environment steps per second, by kind of pool and by renderer."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

import torch

from worldmodel.bench.setup import Bench, random_action
from worldmodel.bench.timing import HostClock, alternate, subject, summary
from worldmodel.envs.pool import Kind, Pool, make_pool
from worldmodel.errors import EnvError
from worldmodel.specs import BuildsBatch

KINDS: tuple[Kind, ...] = ("serial", "process")
"""Pools that any environment can have."""


def measure(bench: Bench) -> dict[str, Any]:
    """A row for each kind of pool the environment can have and each of its renderers; one that cannot be built here
    says why in "error"."""
    count = bench.run.train.num_envs
    rows: dict[str, Any] = {}
    for env in renderings(bench.run.env):
        kinds: tuple[Kind, ...] = (*KINDS, "batched") if _is_vectorised(env) else KINDS
        for kind in kinds:
            name = f"{env.name}, {kind}"
            bench.say(f"{name}, {count} environments")
            try:
                pool = make_pool(env, count, kind=kind, on_event=bench.say)
            except EnvError as error:
                rows[name] = {"error": str(error)}
                continue
            try:
                rows[name] = _row(bench, pool)
            finally:
                pool.close()
    return {"environments": count, "rows": rows}


def renderings(env: Any) -> list[Any]:
    """The environment's config once for every renderer: the choices of its field ``render``, its own one first. One
    that shows no pictures has nothing to render."""
    hint = typing.get_type_hints(type(env)).get("render")
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    if not choices or getattr(env, "obs", "pixels") != "pixels":
        return [env]
    ordered = [env.render, *(choice for choice in choices if choice != env.render)]
    return [dataclasses.replace(env, render=choice) for choice in ordered]


def _is_vectorised(env: Any) -> bool:
    return isinstance(env, BuildsBatch)


def _row(bench: Bench, pool: Pool) -> dict[str, Any]:
    pool.reset(seed=bench.run.seed)
    actions = torch.stack([random_action(pool.spec, pool.num_envs, at) for at in range(64)])
    at = 0

    def step() -> None:
        nonlocal at
        pool.step(actions[at % len(actions)])
        at += 1

    numbers = summary(alternate({"step": subject(step, HostClock())}, bench.plan)["step"])
    return numbers | {
        "steps_per_second": round(1e3 * pool.num_envs / numbers["wall_ms"], 1),
        "frames_per_second": round(1e3 * pool.num_envs * pool.spec.repeat / numbers["wall_ms"], 1),
    }
