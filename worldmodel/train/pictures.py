"""The pictures of a run folder: the learning curve drawn from its scores, and the newest of its videos."""

from __future__ import annotations

import math
from pathlib import Path

from worldmodel.train.log import read_metrics
from worldmodel.train.video import Point, learning_curve_png

CURVE = "learning_curve.png"


def draw_curve(run_dir: Path, title: str) -> Path | None:
    """Draw the evaluations of ``scores.jsonl``, mean and one standard error, by mode and sampled; None where there
    are none.

    Raises: StorageError where the picture cannot be written.
    """
    scores = Path(run_dir) / "scores.jsonl"
    curves: dict[str, list[Point]] = {}
    for row in read_metrics(scores) if scores.is_file() else []:
        kind, _, how = str(row.get("kind", "")).partition("_")
        if kind == "eval":
            mean, error = float(row["return"]), float(row.get("return_sem", math.nan))
            error = error if math.isfinite(error) else 0.0
            curves.setdefault(how, []).append((float(row["frames"]), mean, mean - error, mean + error))
    return learning_curve_png(Path(run_dir) / CURVE, curves, title) if curves else None


def newest(run_dir: Path) -> dict[str, Path]:
    """The learning curve, and the newest video of each name ("episode", "dream"), where they exist."""
    found = {"learning curve": Path(run_dir) / CURVE} if (Path(run_dir) / CURVE).is_file() else {}
    for path in sorted((Path(run_dir) / "videos").glob("*-*.png")):
        found[path.stem.rpartition("-")[0]] = path
    return found
