"""The figures of ``worldmodel bench reach``, drawn by matplotlib from its document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A6D00", "#222222", "#6B6B6B", "#9A9A9A")


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """value.png, Q and return over training; edge.png, what tells the edge from the inside; bias.png, belief and return
    of every variant. Those whose experiments were not run are left out.

    Raises: UserError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib; pip install 'worldmodel[report]', or leave --figures out") from error
    folder.mkdir(parents=True, exist_ok=True)
    experiments, paths = found["experiments"], []
    for name, drawn in (("value", _value), ("edge", _edge), ("bias", _bias)):
        figure = Figure(figsize=(10, 4), layout="constrained")
        if drawn(figure, experiments):
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=120)
    return paths


def _value(figure: Any, experiments: dict[str, Any]) -> bool:
    study = experiments.get("plateau")
    if study is None:
        return False
    left, right = figure.subplots(1, 2)
    for colour, (name, variant) in zip(COLOURS, study["variants"].items()):
        update, q = _curve(variant, "value/mean")
        left.plot(update, q, color=colour, label=name)
        right.plot(update, _curve(variant, "return")[1], color=colour)
    left.axhline(study["bound"], color="black", linestyle="--", linewidth=1)
    left.set(title="mean Q; dashed: no true value exceeds it", xlabel="update", ylim=(0, 1.6 * study["bound"]))
    right.set(title="return, as a share of the optimum", xlabel="update", ylim=(-1.1, 1.1))
    left.legend(fontsize=7, ncols=2)
    return True


def _edge(figure: Any, experiments: dict[str, Any]) -> bool:
    study = experiments.get("plateau")
    if study is None:
        return False
    left, right = figure.subplots(1, 2)
    for colour, name in zip(COLOURS, [name for name in ("base", "min10", "lcb10") if name in study["variants"]]):
        for where, dash in (("edge", "-"), ("inside", "--")):
            line = _curve(study["variants"][name], f"value/std_{where}")
            left.plot(*line, dash, color=colour, label=f"{name}, {where}")
    left.set(title="std of the critics: where branches are cut, and inside", xlabel="update", yscale="log")
    if left.lines:
        left.legend(fontsize=7)
    for colour, (name, variant) in zip(COLOURS, study["variants"].items()):
        if "reach/beyond_share" in next(iter(variant["seeds"].values()))["curve"]:
            right.plot(*_curve(variant, "reach/beyond_share"), color=colour, label=name)
    right.set(title="share of dreamed states that no branch may leave from", xlabel="update", ylim=(0, None))
    right.legend(fontsize=7)
    return True


def _bias(figure: Any, experiments: dict[str, Any]) -> bool:
    shown = [experiments[name] for name in ("pendulum", "dreamer", "plateau") if name in experiments]
    panels = figure.subplots(2, len(shown), squeeze=False)
    for column, study in enumerate(shown):
        names = list(study["variants"])
        for row, (key, title) in enumerate((("return", study["title"]), ("bias", ""))):
            axes = panels[row][column]
            for at, name in enumerate(names):
                values = [run[key] for run in study["variants"][name]["seeds"].values()]
                axes.plot([at] * len(values), values, "o", color=COLOURS[at % len(COLOURS)], markersize=4)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_title(title, fontsize=7)
            axes.set_ylabel("return" if key == "return" else "believed - true", fontsize=8)
            axes.set_xticks(range(len(names)), names if row else [""] * len(names), rotation=60, fontsize=7)
    return bool(shown)


def _curve(variant: dict[str, Any], key: str) -> tuple[Sequence[float], Sequence[float]]:
    """Updates, and the mean over seeds."""
    runs = [run["curve"] for run in variant["seeds"].values()]
    shortest = min(len(run[key]) for run in runs)
    # what is measured now and then is shorter than the list of looks: it belongs to the last ones
    return runs[0]["update"][-shortest:], [sum(run[key][i] for run in runs) / len(runs) for i in range(shortest)]
