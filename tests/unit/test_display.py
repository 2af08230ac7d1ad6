"""The panel and the plain lines."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from worldmodel.train import display as display_module
from worldmodel.train.display import Display, Facts, duration, panel, size, sparkline

FACTS = Facts(
    step=500, env_rate=100.0, update_rate=2.0, ms={"env": 1.5, "learn": 30.0}, returns=[1.0, 3.0],
    losses={"reward": 0.25}, eta_s=65.0, replay_bytes=812_000_000, notes={"skipped": 3.0},
)  # fmt: skip


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_without_a_terminal_there_is_a_line_per_interval_and_a_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Display(total_steps=1000, title="t", stream=stream, every=10.0) as shown:
        for step in range(0, 31):
            clock.now = float(step)
            assert shown.is_due == (step % 10 == 0)
            shown.update(replace(FACTS, step=step))
        shown.update(replace(FACTS, step=99))
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert steps == ["0", "10", "20", "30", "99"]
    assert "return 2  reward 0.25  left 1m05s  skipped 3" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_messages_are_printed_as_they_are() -> None:
    stream = io.StringIO()
    text = "checkpoint: [bold]/runs/" + "x" * 300 + ":smile: 42"
    Display(total_steps=1, title="t", stream=stream).message(text)
    assert stream.getvalue() == text + "\n"


def test_the_panel_says_everything_and_takes_the_title_literally() -> None:
    stream = io.StringIO()
    Console(file=stream, width=100).print(panel(FACTS, 1000, "dmc [vision]"))
    parts = ["dmc [vision]", "500 / 1,000", "1m05s left", "100 steps/s", "learn 30 ms", "812 MB", "skipped 3", "▁█"]
    for part in parts:
        assert part in stream.getvalue()
    empty = Facts(step=0, env_rate=0, update_rate=0, ms={}, returns=[], losses={}, eta_s=None, replay_bytes=0)
    Console(file=stream, width=100).print(panel(empty, 0, ""))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_at_most_four_pictures_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    drawn: list[int] = []
    original = display_module.panel
    monkeypatch.setattr(
        display_module, "panel", lambda facts, *rest: (drawn.append(facts.step), original(facts, *rest))[1]
    )
    stream = Terminal()
    clock = [0.0]
    shown = Display(total_steps=1000, title="t", stream=stream)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for step in range(200):
        clock[0] = step / 100
        shown.update(replace(FACTS, step=step))
    shown.message("checkpoint saved")
    shown.close()
    assert drawn == [0, 25, 50, 75, 100, 125, 150, 175, 199]
    assert "checkpoint saved" in stream.getvalue() and "199 / 1,000" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3600, "1h00m"), (90061, "1d01h"), (float("inf"), "?"), (-1, "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_and_sparklines() -> None:
    assert [size(n) for n in (0, 999, 12_500, 3e6, 2.5e9)] == ["0 B", "999 B", "12.5 kB", "3 MB", "2.50 GB"]
    assert sparkline([], 5) == "" and sparkline([2.0], 5) == "▁" and sparkline([1.0, float("nan"), 1.0], 5) == "▁▁"
    assert sparkline([0.0] * 50 + [1.0] * 50, 4) == "▁▁██"
