"""A run is one frozen value; a preset is a function that returns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides a run; config.json in the run folder is this, resolved."""

    env: Any
    """An EnvConfig (``worldmodel.specs``)."""
    agent: Any
    """An AgentConfig: ``build(spec, device) -> Agent``."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    """Seeds environments, networks, exploration and replay."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes the GPU where there is one."""
    published: str = ""
    """The table this preset answers to, and the figures of this task in it; empty where nobody published any."""
