"""Numbers of the replay buffer; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodel.errors import check_range


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How much is remembered and how it is drawn."""

    capacity: int = 1_000_000
    """Steps held over all environments; the oldest go first."""
    batch_size: int = 16
    """Sequences per batch (B)."""
    length: int = 64
    """Steps per sequence (T), the context step not counted."""
    sampler: Literal["uniform", "prioritized", "dfs"] = "uniform"
    """Start positions: every one alike, by the agent's priorities, or by how often each was drawn before (dynamic
    frequency-based sampling, Drama)."""
    online_fraction: float = 1.0
    """Share of a batch's rows that may come from the online queue (fresh, non-overlapping sequences, each consumed once
    before older data is drawn); 0 switches the queue off."""
    priority_exponent: float = 0.8
    """Priorities are raised to this power (alpha of Schaul et al. 2016, eq. 1)."""
    importance_exponent: float = 0.4
    """Power of the importance weights of prioritised draws (beta of Schaul et al. 2016); 0: all weights are 1."""
    dfs_temperature: float = 10.0
    """tau of "dfs": a start drawn this many times more often than another is e times less likely."""
    memory: Literal["context", "steps"] = "context"
    """What a batch holds of the agent's memory: that of the step before each sequence, or that of all its steps too."""
    windows: int = 0
    """Short sequences beside each batch, for dreams to begin at their ends (``DreamerConfig.starts``); 0: none."""
    window: int = 8
    """Steps of each of these."""
    min_starts: int = 0
    """Start positions held before the first batch is drawn; 0: batch_size x length."""
    memory_budget: float = 0.5
    """Hard cap: the share of the free memory of the device that holds it that may be taken at full capacity."""
    device: Literal["auto", "host", "learner", "disk"] = "auto"
    """Where storage lives: host memory, the learner's device, or files in the run folder that are mapped into memory
    and go with the process; "auto" takes the learner's where the budget allows, and files for data that is larger than
    memory."""
    data_fraction: float = 1.0
    """Share of a batch's sequences that are drawn from --data, where it is given; 1: nothing is learned from elsewhere,
    and no environment is stepped (offline)."""

    def __post_init__(self) -> None:
        check_range(self, 1, "batch_size")
        check_range(self, 2, "length")  # one transition
        if self.capacity < self.length + 1:
            raise ValueError(f"capacity must be at least length + 1 = {self.length + 1} steps, got {self.capacity}")
        if not 0 <= self.online_fraction <= 1:
            raise ValueError(f"online_fraction must be in [0, 1], got {self.online_fraction}")
        if self.windows < 0:
            raise ValueError(f"windows must not be negative, got {self.windows}")
        if self.windows and not 1 <= self.window <= self.length:
            raise ValueError(f"window must be in [1, length={self.length}], got {self.window}")
        if not 0 < self.dfs_temperature < float("inf"):
            raise ValueError(f"dfs_temperature must be finite and positive, got {self.dfs_temperature}")
        check_range(self, 0, "data_fraction", high=1)
        check_range(self, 0, "priority_exponent", "importance_exponent", "min_starts")
        if not 0 < self.memory_budget <= 1:
            raise ValueError(f"memory_budget must be in (0, 1], got {self.memory_budget}")
