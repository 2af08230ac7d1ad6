"""What is measured, built from a Run and filled with random content, and the conditions under which it is."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.bench.timing import Clock, Plan, clock_of
from worldmodel.config import Run, to_json
from worldmodel.nn import precision as numbers
from worldmodel.protocols import Agent
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay, make_replay
from worldmodel.runs import pick_device, prepare_cpu
from worldmodel.storage import replacing
from worldmodel.train.compile import accelerate
from worldmodel.train.manifest import provenance
from worldmodel.types import ArraySpec, EnvSpec, Step

EPISODE = 500
"""Steps of an episode in random content."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every measurement is given."""

    run: Run
    plan: Plan
    held: int = 10_000
    """Steps that a replay holds while it is measured, all of them written."""
    batches: tuple[int, ...] = (1, 8, 64, 512)
    """Environments that are acted for at once."""
    against: Path | None = None
    """A peer's folder."""
    python: str = sys.executable
    """The interpreter that the peer runs in."""
    peer_agent: Any = None
    """Configuration of the agent that the peer is sized by; None: the run's."""
    say: Callable[[str], None] = lambda text: None
    """Told what happens, in a sentence each."""

    def __post_init__(self) -> None:
        if self.held < 1:
            raise ValueError(f"--held must be at least 1 step, got {self.held}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"--batches must be numbers of environments, at least 1 each, got {list(self.batches)}")

    @property
    def device(self) -> torch.device:
        return pick_device(self.run.device)

    @property
    def clock(self) -> Clock:
        return clock_of(self.device)


def env_spec(run: Run) -> EnvSpec:
    """What the run's environment says of itself; builds one. Raises EnvError where it cannot be built."""
    env = run.env.build(0)
    try:
        return env.spec
    finally:
        env.close()


def build_agent(run: Run, spec: EnvSpec, device: torch.device, *, eager: bool = False) -> Agent[Any]:
    """The run's agent, untrained; compiled and captured as the run says, unless ``eager``."""
    agent = run.agent.build(spec, device=device, seed=run.seed)
    accelerate(agent, "eager" if eager else run.train.compile, device)
    return agent


def networks(agent: Agent[Any]) -> nn.Module | None:
    """An agent's modules under one root, where it has such: itself, or what it calls ``modules``."""
    root = agent if isinstance(agent, nn.Module) else getattr(agent, "modules", None)
    return root if isinstance(root, nn.Module) else None


def parameter_count(agent: Agent[Any]) -> int:
    """Learned parameters."""
    root = networks(agent)
    return sum(p.numel() for p in root.parameters() if p.requires_grad) if root is not None else 0


def random_array(array: ArraySpec, count: int, generator: torch.Generator) -> Tensor:
    """(count, ...) of an array's type: images and classes uniform, numbers normal."""
    shape, dtype = (count, *array.shape), getattr(torch, array.dtype)
    if array.classes is not None or not dtype.is_floating_point:
        high = array.classes or (2 if dtype is torch.bool else 256)
        return torch.randint(0, high, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def random_step(spec: EnvSpec, count: int, at: int) -> Step:
    """Step number ``at`` of ``count`` environments with random content, on the host as environments give it."""
    g = torch.Generator().manual_seed(at)
    first, last = at % EPISODE == 0, at % EPISODE == EPISODE - 1
    return Step(
        obs={key: random_array(array, count, g) for key, array in spec.obs.items()},
        reward=torch.rand(count, generator=g) * (not first),
        is_first=torch.full((count,), first),
        is_last=torch.full((count,), last),
        is_terminal=torch.zeros(count, dtype=torch.bool),
    )


def random_action(spec: EnvSpec, count: int, at: int) -> Tensor:
    """(count, A) in [-1, 1], or one-hot."""
    g = torch.Generator().manual_seed(at)
    if spec.action.kind == "discrete":
        return torch.eye(spec.action.size)[torch.randint(0, spec.action.size, (count,), generator=g)]
    return torch.rand(count, spec.action.size, generator=g) * 2 - 1


def filled_replay(
    config: ReplayConfig, spec: EnvSpec, agent: Agent[Any], num_envs: int, held: int, *, device: torch.device, seed: int
) -> RingReplay:
    """A replay, full with about ``held`` steps of random content, enough for a batch at least; nothing is fresh.
    Latents are those that the agent begins with."""
    each = max(-(-held // num_envs), 2 * config.length + 2)
    config = dataclasses.replace(config, capacity=each * num_envs, min_starts=0, online_fraction=0.0)
    replay = make_replay(config, spec, agent.memory_spec, num_envs, device=device, seed=seed)
    memory = agent.memory(agent.initial(num_envs))
    for at in range(each):
        replay.add(random_step(spec, num_envs, at), random_action(spec, num_envs, at), memory)
    return replay


# Conditions


def precision(run: Run, device: torch.device) -> str:
    """What the agent computes in; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    return numbers.chosen(to_json(run.agent).get("precision", "float32"), device)


def conditions(bench: Bench) -> dict[str, Any]:
    """Of a run: :func:`surroundings`, and its precision. Sets torch's threads to the run's."""
    prepare_cpu(bench.run)
    return surroundings(bench.device) | {"precision": precision(bench.run, bench.device)}


def surroundings(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit, threads and load, as they are now."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_name(), "cores": os.cpu_count(), "memory_gib": memory_gib(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        },
        "device": device.type,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "load": load(),
        "provenance": provenance(),
    }


def cpu_name() -> str:
    """As the kernel names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_gib() -> int:
    """Of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30


def load() -> float:
    """How many processes want a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def write(path: Path, document: dict[str, Any]) -> None:
    """One JSON file. Raises StorageError where it cannot be written."""
    with replacing(path, otherwise="give another --json") as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())
