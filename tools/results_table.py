"""Writes the table of learning results into docs/results/README.md, between its markers, from the JSON files beside it.

    python tools/results_table.py
    python tools/results_table.py --check       # exit code 1 where the table is not what the files say
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
BEGIN, END = "<!-- learning -->", "<!-- /learning -->"
HEAD = (
    "| file | command | seeds | return, mean [lowest, highest] | wanted | seeds that pass "
    "| updates | minutes a run (of processor) | machine | commit |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def is_learning(document: Any) -> bool:
    """Whether a JSON document is one that tools/learning.py wrote."""
    return isinstance(document, dict) and {"returns", "seeds", "runs", "provenance"} <= document.keys()


def line(name: str, d: dict[str, Any]) -> str:
    """One row; every figure is the file's."""
    returns, passed = d["returns"], d["passed"]
    minutes = f"{statistics.mean(run['seconds'] for run in d['runs']) / 60:.1f}"
    if all("cpu_seconds" in run for run in d["runs"]):
        minutes += f" ({statistics.mean(run['cpu_seconds'] for run in d['runs']) / 60:.1f})"
    updates = max(run["updates"] for run in d["runs"])
    side = f", {d['parallel']} side by side" if d["parallel"] > 1 else ""
    cells = [
        f"[{name}.json]({name}.json)",
        f"`{d['command']}`",
        ", ".join(map(str, d["seeds"])),
        f"{statistics.mean(returns):.3g} [{min(returns):.3g}, {max(returns):.3g}]",
        "-" if d["pass_at"] is None else f"{d['pass_at']:g}",
        "-" if passed is None else f"{sum(passed)} of {len(passed)}",
        f"{updates:,.0f}",
        minutes,
        f"{d['machine']['cpus']} x {d['machine']['cpu']}{side}",
        ", ".join(dict.fromkeys(short(run.get("commit", d["provenance"]["commit"])) for run in d["runs"])),
    ]
    return "| " + " | ".join(cells) + " |"


def short(commit: str) -> str:
    """Eight letters, and whether there were changes besides."""
    return commit[:8] + ("-dirty" if commit.endswith("-dirty") else "")


def table(folder: Path) -> str:
    """All learning results of a folder, by name."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    rows = [line(name, d) for name, d in documents.items() if is_learning(d)]
    return "\n".join([HEAD, *rows]) if rows else "None yet."


def replaced(text: str, content: str) -> str:
    """``text`` with ``content`` between the markers. Raises ValueError where a marker is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs the markers {BEGIN} and {END}, in this order; put them where the table goes")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 where the table is stale")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    page = args.folder / "README.md"
    old = page.read_text()
    new = replaced(old, table(args.folder))
    if args.check:
        print("the table is up to date" if new == old else "the table is stale: run python tools/results_table.py")
        return int(new != old)
    page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
