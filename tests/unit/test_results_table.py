"""The table of learning results says what the files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tool import load_tool

ROOT = Path(__file__).resolve().parents[2]
tool = load_tool("results_table")

RESULT = {
    "command": "worldmodel train quickstart", "seeds": [0, 1], "parallel": 1, "returns": [3.0, 4.0], "pass_at": 3.5,
    "passed": [False, True], "machine": {"cpus": 2, "cpu": "Some CPU"}, "provenance": {"commit": "0123456789-dirty"},
    "runs": [{"seconds": 60, "updates": 100}, {"seconds": 120, "updates": 100}],
}


def test_table_is_written_between_the_markers_and_checked(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n")
    (tmp_path / "catch.json").write_text(json.dumps(RESULT))
    (tmp_path / "other.json").write_text("[1]")
    assert tool.main(["--folder", str(tmp_path), "--check"]) == 1
    assert tool.main(["--folder", str(tmp_path)]) == 0 == tool.main(["--folder", str(tmp_path), "--check"])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "other" not in text
    assert "| 3.5 [3, 4] | 3.5 | 1 of 2 | 100 | 1.5 | 2 x Some CPU | 01234567-dirty |" in text


def test_minutes_of_the_processor_stand_beside_those_of_the_clock():
    runs = [{**run, "cpu_seconds": spent} for run, spent in zip(RESULT["runs"], (36, 72))]
    assert "| 100 | 1.5 (0.9) |" in tool.line("catch", {**RESULT, "runs": runs})


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="markers"):
        tool.main(["--folder", str(tmp_path)])
