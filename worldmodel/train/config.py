"""Numbers of the training loop; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodel.errors import check_range


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how often, and what is kept."""

    steps: int = 1_000_000
    """Decisions to take, over all environments (frames = decisions x action repeat). Offline, updates: then these stand
    in the place of decisions here and in every other number below."""
    num_envs: int = 1
    """Environments stepped together (N)."""
    pool: Literal["auto", "serial", "process", "batched"] = "auto"
    """How they are stepped; "auto" measures one environment's step time and decides."""
    train_ratio: float = 512.0
    """Replayed steps per decision; updates per decision = train_ratio / (batch_size x length)."""
    first_updates: int = 0
    """Updates made at once when replay is first ready, besides those of train_ratio."""
    eval_every: int = 10_000
    """Decisions between evaluations; 0 for only one at the end."""
    eval_episodes: int = 10
    """Episodes per evaluation and mode of acting (mode and sampled)."""
    eval_envs: int = 4
    """Environments that evaluate side by side."""
    log_every: float = 10.0
    """Seconds between metric rows and console lines when log_steps is 0."""
    log_steps: int = 0
    """Decisions between metric rows; fixed spacing makes two runs' metrics comparable line by line. 0: by time."""
    checkpoint_every: float = 600.0
    """Seconds between checkpoints when checkpoint_steps is 0."""
    checkpoint_steps: int = 0
    """Decisions between checkpoints; 0: by time."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    max_bad_updates: int = 20
    """Non-finite updates in a row after which the run stops."""
    min_updates: int = 0
    """Updates to have made before acting goes on, from what replay holds: for a resume that is to learn something else
    of it, with the weights of rewards changed. 0: acting and learning alternate from the beginning."""
    stop_at_return: float | None = None
    """Stop early once an evaluation's mean return (mode of acting) reaches this; None never stops early."""
    compile: Literal["auto", "eager", "compile", "cudagraph", "compile+cudagraph"] = "auto"
    """How updates and acting run: eager; by torch.compile; captured as CUDA graphs; both. "auto": both on a GPU, eager
    on a CPU. Compiling changes rounding, so a resume is bit for bit in the same mode."""
    threads: int = 0
    """CPU threads for torch; 0 times a few updates and takes the fastest number (a resume keeps the run's)."""
    wandb: str = ""
    """Weights & Biases project to log to as well; empty for none."""

    def __post_init__(self) -> None:
        check_range(self, 1, "steps", "num_envs", "eval_episodes", "eval_envs", "keep_checkpoints", "max_bad_updates")
        check_range(self, 0, "train_ratio", "first_updates", "log_steps", "checkpoint_steps", "eval_every", "threads")
        check_range(self, 0, "min_updates")
