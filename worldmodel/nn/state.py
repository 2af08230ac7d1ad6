"""What agents keep besides networks: counts of skipped updates, and one flat dictionary of everything."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Skipped:
    """Counts updates that were skipped: all of them, and the last ones in a row."""

    def __init__(self, device: torch.device) -> None:
        self.streak = torch.zeros((), device=device)
        self.total = torch.zeros((), device=device)

    @torch.no_grad()
    def count(self, healthy: Tensor) -> dict[str, Tensor]:
        """Take in whether an update was () healthy; what is to be logged."""
        self.streak.copy_(torch.where(healthy, 0.0, self.streak + 1))
        self.total.add_((~healthy).float())
        return {"update/skipped": self.total.clone(), "update/bad_streak": self.streak.clone()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"bad_streak": self.streak, "bad_total": self.total}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies in place."""
        self.streak.copy_(state["bad_streak"])
        self.total.copy_(state["bad_total"])


def joined(**groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One dictionary of several: "group/name".

    >>> joined(count={"seen": torch.tensor(3)})
    {'count/seen': tensor(3)}
    """
    return {f"{group}/{name}": x for group, state in groups.items() for name, x in state.items()}


def parted(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What :func:`joined` made one."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, x in state.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = x
    return groups
