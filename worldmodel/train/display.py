"""What the person at the terminal sees: a live panel, or one line now and then where nobody looks at a terminal."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How a run stands."""

    step: int
    """Decisions taken."""
    env_rate: float
    """Decisions per second."""
    update_rate: float
    """Updates per second."""
    ms: Mapping[str, float]
    """Milliseconds by part of the loop: env, replay, learn, transfer, ..."""
    returns: Sequence[float]
    """Returns of finished episodes, oldest first."""
    losses: Mapping[str, float]
    eta_s: float | None
    """Seconds to go; None where that is unknown."""
    replay_bytes: int
    notes: Mapping[str, float] = field(default_factory=dict)
    """What deserves a look: skipped updates, restarted environments."""


class Display:
    """Shows the facts of a run; close it (or leave its context) before the terminal is used otherwise.

    Args:
        total_steps: decisions the run will take.
        title: of the panel.
        live: a panel that redraws itself; None decides: where the output is a terminal.
        stream: where to; None for standard output.
        every: seconds between two lines when there is no panel.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        title: str,
        live: bool | None = None,
        stream: TextIO | None = None,
        every: float = 10.0,
    ) -> None:
        self.total_steps, self.title, self.every = total_steps, title, every
        self._console = Console(file=stream or sys.stdout, highlight=False, emoji=False)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._facts: Facts | None = None
        self._shown: Facts | None = None
        self._next = -float("inf")
        self._live: Live | None = None
        if terminal if live is None else live:
            self._interval = 0.25
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=True, redirect_stderr=True)
        else:
            self._interval = every

    @property
    def is_due(self) -> bool:
        """Whether facts given now would be shown now; saves gathering them in vain."""
        return time.monotonic() >= self._next

    def update(self, facts: Facts) -> None:
        """Take note of the facts, and show them if it is time."""
        self._facts = facts
        if self.is_due:
            self._show(facts)

    def message(self, text: str) -> None:
        """Print a line that stays, above the panel."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Show the last facts and leave the terminal as it was."""
        if self._facts is not None and self._facts is not self._shown:
            self._show(self._facts)
        if self._live is not None:
            self._live.stop()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, facts: Facts) -> None:
        self._shown, self._next = facts, time.monotonic() + self._interval
        if self._live is None:
            self._console.print(plain_line(facts, self.total_steps), markup=False, soft_wrap=True)
            return
        if not self._live.is_started:
            self._live.start()
        self._live.update(panel(facts, self.total_steps, self.title), refresh=True)


def plain_line(facts: Facts, total_steps: int) -> str:
    """The facts in one line.

    >>> rates = {"env_rate": 100, "update_rate": 2}
    >>> facts = Facts(step=500, **rates, ms={}, returns=[1.0, 3.0], losses={}, eta_s=5, replay_bytes=0)
    >>> plain_line(facts, 1000)
    'step 500 / 1,000 (50.0%)  100 steps/s  2 updates/s  return 2  left 5s'
    """
    parts = [
        f"step {facts.step:,} / {total_steps:,} ({100 * facts.step / max(total_steps, 1):.1f}%)",
        f"{facts.env_rate:.3g} steps/s",
        f"{facts.update_rate:.3g} updates/s",
    ]
    if facts.returns:
        parts.append(f"return {_recent(facts.returns):.4g}")
    parts += [f"{name} {value:.4g}" for name, value in facts.losses.items()]
    if facts.eta_s is not None:
        parts.append(f"left {duration(facts.eta_s)}")
    parts += [f"{name} {value:g}" for name, value in facts.notes.items()]
    return "  ".join(parts)


def panel(facts: Facts, total_steps: int, title: str) -> Panel:
    """The facts as a panel."""
    head = Table.grid(padding=(0, 2))
    left = "" if facts.eta_s is None else f"{duration(facts.eta_s)} left"
    share = f"{facts.step:,} / {total_steps:,}"
    bar = ProgressBar(total=max(total_steps, 1), completed=facts.step, width=32)
    head.add_row(bar, share, Text(left, style="cyan"))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", justify="right")
    rows.add_column(overflow="fold")
    rows.add_row("speed", f"{facts.env_rate:.4g} steps/s, {facts.update_rate:.4g} updates/s")
    if facts.ms:
        rows.add_row("time", ", ".join(f"{name} {ms:.3g} ms" for name, ms in facts.ms.items()))
    if facts.returns:
        recent = f"{_recent(facts.returns):.4g}  best {max(facts.returns):.4g}  "
        rows.add_row("return", Text(recent) + Text(sparkline(facts.returns, 40), style="green"))
    if facts.losses:
        rows.add_row("losses", ", ".join(f"{name} {value:.4g}" for name, value in facts.losses.items()))
    if facts.replay_bytes:
        rows.add_row("replay", size(facts.replay_bytes))
    if facts.notes:
        notes = ", ".join(f"{name} {value:g}" for name, value in facts.notes.items())
        rows.add_row("notes", Text(notes, style="yellow"))
    return Panel(Group(head, rows), title=Text(title), title_align="left", border_style="blue")


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve of block characters: means over equal stretches, from the lowest to the highest.

    >>> sparkline([0, 1, 2, 3], 4)
    '▁▃▅█'
    """
    finite = [value for value in values if abs(value) < float("inf")]
    columns = min(width, len(finite))
    edges = [i * len(finite) // columns for i in range(columns + 1)] if columns else [0]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)
    return "".join(_BARS[int((mean - low) / span * 7.0) if span > 0 else 0] for mean in means)


def duration(seconds: float) -> str:
    """Seconds for people: 42s, 3m05s, 2h07m, 4d03h."""
    if not 0 <= seconds < 1e9:
        return "?"
    whole = round(seconds)
    for unit, lower, sign, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= unit:
            return f"{whole // unit}{sign}{whole % unit // lower:02d}{small}"
    return f"{whole}s"


def size(count: float) -> str:
    """Bytes for people: 812 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _recent(returns: Sequence[float]) -> float:
    last = returns[-10:]
    return sum(last) / len(last)
