"""F12: a clock that jumps."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from tests.faults.tiny import outcome, resume, train


def test_a_clock_that_goes_back_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path / "steady") == 0
    hours = itertools.count(1_800_000_000, -3600)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(hours)))
        patch.setattr(time, "time_ns", lambda: next(hours) * 10**9)
        assert train(tmp_path / "jumps", "--train.steps", "24") == 0
        assert resume(tmp_path / "jumps", "--train.steps", "48") == 0
    (steady, jumps) = (outcome(tmp_path / name) for name in ("steady", "jumps"))
    assert jumps["files"] == steady["files"] and jumps["step"] == steady["step"]
    rows = [json.loads(line) for line in (tmp_path / "jumps" / "metrics.jsonl").read_text().splitlines()]
    measured = [value for row in rows for name, value in row.items() if name.startswith(("time/", "fps/"))]
    assert len(measured) > 20 and min(measured) >= 0
