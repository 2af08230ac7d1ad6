"""What a run would be, without running it: parameters, memory, updates, and the table it answers to."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from worldmodel.config import Run, to_json
from worldmodel.replay.storage import bytes_per_step, slots_per_env
from worldmodel.train.display import size
from worldmodel.types import ArraySpec, EnvSpec


def describe(run: Run) -> dict[str, Any]:
    """The facts of a run as plain JSON values. Builds one environment, and the networks without their weights.

    Raises: EnvError where the environment cannot be built; UserError where the replay holds no sequence.
    """
    env = run.env.build(0)
    try:
        spec: EnvSpec = env.spec
    finally:
        env.close()
    modules, memory_spec = _agent(run, spec)
    decisions = 0 if run.is_offline else run.train.steps
    frames = decisions * spec.repeat
    per_decision = run.train.train_ratio / (run.replay.batch_size * run.replay.length)
    return {
        "config": to_json(run),
        "env": {
            "name": spec.name,
            "obs": {key: asdict(array) for key, array in spec.obs.items()},
            "action": asdict(spec.action),
            "repeat": spec.repeat,
            "max_steps": spec.max_steps,
            "reference": spec.reference,
            "encoders": {key: _encoder(array) for key, array in spec.obs.items()},
        },
        "parameters": {"total": sum(modules.values()), "modules": modules},
        "replay": _replay(run, spec, memory_spec),
        "updates": {
            "per_decision": per_decision,
            "per_million_frames": per_decision * 1e6 / spec.repeat,
            "total": run.train.steps if run.is_offline else round(per_decision * decisions),
        },
        "data": run.data,
        "decisions": decisions,
        "frames": frames,
        "published": run.published,
    }


def table(facts: dict[str, Any], title: str) -> RenderableType:
    """The facts for people."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", justify="right")
    rows.add_column(overflow="fold")
    env, replay, updates = facts["env"], facts["replay"], facts["updates"]
    rows.add_row("environment", env["name"])
    for key, array in env["obs"].items():
        rows.add_row("", f"{key} {tuple(array['shape'])} {array['dtype']} -> {env['encoders'][key]}")
    rows.add_row("", f"action ({env['action']['size']},) {env['action']['kind']}, repeat {env['repeat']}")
    if facts["data"]:
        rows.add_row("data", f"{facts['data']}, {replay['bytes_per_step']:,} bytes a step")
    if facts["decisions"]:
        rows.add_row("length", f"{facts['decisions']:,} decisions = {facts['frames']:,} frames")
        rows.add_row(
            "updates",
            f"{updates['per_decision']:.4g} per decision, {updates['per_million_frames']:,.0f} per million frames, "
            f"{updates['total']:,} in all",
        )
        rows.add_row(
            "replay",
            f"{size(replay['bytes_at_capacity'])} at capacity ({replay['capacity']:,} steps of "
            f"{replay['bytes_per_step']:,} bytes), {size(replay['bytes_now'])} now",
        )
    else:
        rows.add_row("updates", f"{updates['total']:,}, offline")
    rows.add_row("parameters", f"{facts['parameters']['total']:,}")
    for name, count in facts["parameters"]["modules"].items():
        rows.add_row("", f"{count:>13,}  {name}")
    rows.add_row("answers to", facts["published"] or "nobody's table")
    for line in facts.get("changed", []):
        rows.add_row("changed", Text(line, style="yellow"))
    return Group(Text(title, style="bold"), rows)


def _encoder(array: ArraySpec) -> str:
    if array.is_image:
        return "image encoder"
    return "vector encoder" if array.classes is None else f"vector encoder, one-hot of {array.classes}"


def _agent(run: Run, spec: EnvSpec) -> tuple[dict[str, int], dict[str, ArraySpec]]:
    """Learned parameters by module, and what the agent keeps in replay. The networks are made on torch's "meta"
    device, shapes without memory; a model that cannot be made there is made on the CPU."""
    try:
        with torch.device("meta"):
            agent = run.agent.build(spec, device=torch.device("meta"), seed=run.seed)
    except (RuntimeError, NotImplementedError):
        agent = run.agent.build(spec, device=torch.device("cpu"), seed=run.seed)
    memory_spec: dict[str, ArraySpec] = agent.memory_spec
    root = agent if isinstance(agent, nn.Module) else getattr(agent, "modules", None)
    if not isinstance(root, nn.Module):
        return {}, memory_spec
    counts: dict[str, int] = {}
    for name, parameter in root.named_parameters():
        if parameter.requires_grad:
            head, _, rest = name.partition(".")
            inner = rest.partition(".")[0]
            # the world model is worth a closer look than "model"
            key = f"{head}.{inner}" if head == "model" and inner else head
            counts[key] = counts.get(key, 0) + math.prod(parameter.shape)
    return counts, memory_spec


def _replay(run: Run, spec: EnvSpec, memory_spec: dict[str, ArraySpec]) -> dict[str, int]:
    per_step = bytes_per_step(spec, memory_spec, run.replay.sampler)
    steps = slots_per_env(run.replay, run.train.num_envs) * run.train.num_envs
    return {"bytes_now": 0, "bytes_at_capacity": per_step * steps, "bytes_per_step": per_step, "capacity": steps}
