"""Pictures of a report, drawn by matplotlib: each function returns a PNG.

Our runs are coloured (Okabe and Ito's palette, which colour-blind readers can tell apart) and solid; what others
published is grey and dashed or hollow, so that the two are told apart without colour as well.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.errors import UserError
from worldmodel.report import stats
from worldmodel.report.curves import Curve, band

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A6D00")
GREYS = ("#222222", "#6B6B6B", "#9A9A9A")
DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("s", "D", "^", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a legend calls a curve or a set of scores, and whose it is."""

    label: str
    index: int
    """Which colour, or which grey and dash."""
    is_published: bool = False

    @property
    def colour(self) -> str:
        colours = GREYS if self.is_published else COLOURS
        return colours[self.index % len(colours)]

    @property
    def dash(self) -> Any:
        if self.is_published:
            return DASHES[self.index % len(DASHES)]
        return "-" if self.index < len(COLOURS) else DASHES[self.index % len(DASHES)]


def learning_curves(task: str, scores: str, lines: Sequence[tuple[Line, Curve]], last: float) -> bytes:
    """Mean over seeds with its 95 % interval over frames, up to frame ``last``.

    A curve is thin where some of its seeds have no score (they are shorter, or began later).
    """
    figure, axes = _figure(6.4, 4.2 + 0.19 * len(lines))
    for line, curve in sorted(lines, key=lambda pair: not pair[0].is_published):
        counts, interval = band(curve)
        label = f"{line.label}, {curve.seeds} seed{'s' * (curve.seeds > 1)}"
        within = curve.frames <= last * 1.0001
        x, full = curve.frames[within], (counts == curve.seeds)[within]
        y = interval.point[within]
        alpha = 0.12 if line.is_published else 0.22
        axes.fill_between(x, interval.low[within], interval.high[within], color=line.colour, alpha=alpha, linewidth=0)
        style: dict[str, Any] = {"color": line.colour, "linestyle": line.dash}
        axes.plot(x, np.where(full, y, np.nan), linewidth=2.0, label=label, **style)
        # a thin piece begins and ends at points of the thick line
        beside = ~full | np.append(~full[1:], False) | np.append(False, ~full[:-1])
        axes.plot(x, np.where(beside, y, np.nan), linewidth=0.9, **style)
        if np.isfinite(y).sum() == 1:
            axes.plot(x, y, marker="o", color=line.colour)
            axes.vlines(x, interval.low[within], interval.high[within], color=line.colour, linewidth=2, alpha=0.5)
    axes.set_xlim(0, last)
    axes.set_xlabel("environment frames")
    axes.set_ylabel("return (mean and 95 % interval over seeds)")
    axes.xaxis.set_major_formatter(_frames())
    axes.set_title(f"{task}\n{scores}", fontsize=10)
    _legend(figure, axes)
    return _png(figure)


def aggregates(title: str, rows: Sequence[tuple[Line, stats.Scores]], unit: str) -> bytes:
    """IQM, median, mean and optimality gap of each row, with 95 % intervals."""
    figure = _blank(9.6, 1.5 + 0.3 * len(rows))
    panels: Any = figure.subplots(1, len(stats.AGGREGATES), sharey=True)
    for axes, (name, statistic) in zip(panels, stats.AGGREGATES.items()):
        for y, (line, scores) in enumerate(rows):
            interval = stats.bootstrap(statistic, scores)
            height = 0.5 if not line.is_published else 0.32
            colour = GREYS[1] if line.is_published else line.colour
            axes.barh(y, interval.high - interval.low, left=interval.low, height=height, color=colour, alpha=0.35)
            axes.plot([interval.point] * 2, [y - height / 2, y + height / 2], color=colour, linewidth=2)
        axes.set_title(f"{name}{' (less is better)' if name == 'optimality gap' else ''}", fontsize=9)
        axes.set_xlabel(unit, fontsize=8)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#E4E4E4")
        axes.margins(x=0.08)
        axes.use_sticky_edges = False
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set_yticks(range(len(rows)), [line.label for line, _ in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    for tick, (line, _) in zip(panels[0].get_yticklabels(), rows):
        tick.set_color("#444444" if line.is_published else line.colour)
        tick.set_fontweight("normal" if line.is_published else "bold")
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def profiles(title: str, rows: Sequence[tuple[Line, stats.Scores]], unit: str) -> bytes:
    """Share of runs above each score."""
    figure, axes = _figure(6.4, 4.2 + 0.19 * len(rows))
    pooled = np.concatenate([task for _, scores in rows for task in scores])
    thresholds = np.linspace(min(0.0, float(pooled.min())), float(np.quantile(pooled, 0.98)) * 1.05 + 1e-9, 81)

    def profile(scores: stats.Scores) -> np.ndarray:
        return stats.performance_profile(scores, thresholds)

    for line, scores in rows:
        interval = stats.bootstrap(profile, scores, reps=1000)
        style: dict[str, Any] = {"color": line.colour, "linestyle": line.dash, "linewidth": 1.8}
        axes.step(thresholds, interval.point, where="post", label=line.label, **style)
        alpha = 0.1 if line.is_published else 0.2
        axes.fill_between(
            thresholds, interval.low, interval.high, color=line.colour, alpha=alpha, linewidth=0, step="post"
        )
    axes.set_ylim(0, 1)
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_xlabel(f"t ({unit})")
    axes.set_ylabel("share of runs with a score above t")
    axes.set_title(title)
    _legend(figure, axes)
    return _png(figure)


def by_task(title: str, rows: Sequence[tuple[Line, dict[str, np.ndarray]]], unit: str) -> bytes:
    """One row per task: normalised mean of each line, ours with its 95 % interval."""
    tasks = sorted({task for line, scores in rows for task in scores if not line.is_published})
    figure, axes = _figure(7.2, 1.6 + 0.3 * len(tasks) + 0.19 * len(rows))
    ours = [line for line, _ in rows if not line.is_published]
    for line, scores in rows:
        shift = 0.0 if line.is_published else 0.16 * (ours.index(line) - (len(ours) - 1) / 2)
        known = [(y + shift, scores[task]) for y, task in enumerate(tasks) if task in scores]
        means = [float(values.mean()) for _, values in known]
        if line.is_published:
            marker = MARKERS[line.index % len(MARKERS)]
            axes.plot(
                means, [y for y, _ in known], linestyle="none", marker=marker, markersize=6, markerfacecolor="none",
                color=line.colour, label=line.label, zorder=4,
            )
            continue
        axes.plot(
            means, [y for y, _ in known], linestyle="none", marker="o", color=line.colour, label=line.label, zorder=3
        )
        for y, values in known:
            interval = stats.bootstrap(stats.mean, [values])
            axes.plot([interval.low, interval.high], [y, y], color=line.colour, linewidth=2, zorder=3)
    for level in (0.0, 1.0):
        axes.axvline(level, color="#B0B0B0", linewidth=1.0, zorder=1)
    low, high = axes.get_xlim()
    if high > 2.0:
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xticks([tick for tick in (-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= 1.2 * high])
        axes.set_xlim(low / 2, 1.2 * high)
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
        axes.minorticks_off()
    axes.set_yticks(range(len(tasks)), [task.replace("_", " ") for task in tasks])
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_xlabel(f"{unit}{', logarithmic above 1' if high > 2.0 else ''}")
    axes.set_title(title)
    _legend(figure, axes)
    return _png(figure)


def front(title: str, points: Sequence[tuple[str, float, float, float, float]], unit: str) -> bytes:
    """Scores over costs (label, cost, score, low, high), and the line of those that nothing cheaper beats."""
    figure, axes = _figure(8.0, 5.4)
    best, line = -np.inf, []
    for name, cost, score, low, high in sorted(points, key=lambda point: (point[1], -point[2])):
        is_best = score > best
        best = max(best, score)
        if is_best:
            line.append((cost, score))
        colour = COLOURS[0] if is_best else GREYS[1]
        axes.vlines(cost, low, high, color=colour, linewidth=1.5, alpha=0.5)
        axes.plot(cost, score, marker="o", color=colour, zorder=3)
        axes.annotate(name, (cost, score), xytext=(5, 3), textcoords="offset points", fontsize=7, color=colour)
    axes.step(*zip(*line), where="post", color=COLOURS[0], linewidth=1.0, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xlabel(unit)
    axes.set_ylabel("normalised score (IQM, 95 % interval)")
    axes.set_title(title)
    return _png(figure)


def require() -> None:
    """Raises: UserError where matplotlib is missing, naming the extra that brings it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("reports need matplotlib; pip install 'worldmodel[report]'") from error


def _blank(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor="white")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = _blank(width, height)
    axes = figure.subplots()
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # published curves are drawn first, to lie below; they are named last
    order = sorted(range(len(labels)), key=lambda i: handles[i].get_color() in GREYS)
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside lower left", fontsize=8, frameon=False,
        handlelength=3.2,
    )


def _frames() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
