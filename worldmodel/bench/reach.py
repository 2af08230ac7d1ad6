"""What becomes of agents that bootstrap from states no data reaches, and of those that know (Sims et al. 2024).

The experiments are the functions of ``configs/reach.py``; here they are run, judged and drawn.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worldmodel.bench.setup import load, surroundings
from worldmodel.errors import UserError, unknown
from worldmodel.presets import load_module

Say = Callable[[str], None]


def document(
    names: Sequence[str], *, seeds: int, variants: Sequence[str], updates: int, quick: bool, parallel: int,
    said: dict[str, Any], say: Say, earlier: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda document: None,
) -> dict[str, Any]:
    """Run experiments and judge them.

    Args:
        names: experiments; none: all.
        seeds: of variants that are named, and at most of others, which know how many they are worth.
        variants: of each; none: all.
        updates: instead of the experiment's own number; 0: that.
        quick: one seed of what verdicts are about.
        parallel: processes side by side, of one thread each.
        earlier: a document whose other experiments and variants are kept.
        keep: is given what there is after every run.
    Raises: UserError for a name that does not exist.
    """
    room = load_module("worldmodel.configs.reach")
    known = room.studies()
    for name in names:
        if name not in known:
            raise UserError(unknown("experiment", name, known))
    torch.set_num_threads(1)
    before = surroundings(torch.device("cpu"))
    found: dict[str, Any] = dict((earlier or {}).get("experiments", {}))

    def whole() -> dict[str, Any]:
        return {"part": "reach", **said, **before, "load_at_end": load(), "experiments": found}

    for name in names or known:
        study = room.reduced(known[name]) if quick else known[name]
        for variant in variants:
            if variant not in known[name].variants:
                raise UserError(unknown(f"variant of {name}", variant, known[name].variants))
        for so_far in _run(study, found.get(name), variants, seeds, updates, parallel, say):
            found[name] = so_far
            keep(whole())
    return whole()


def _run(
    study: Any, earlier: dict[str, Any] | None, variants: Sequence[str], seeds: int, updates: int, parallel: int,
    say: Say,
) -> Iterator[dict[str, Any]]:
    """What is known of a study after each run."""
    done: dict[str, Any] = dict((earlier or {}).get("variants", {}))
    wanted = {name: seeds for name in variants}
    wanted = wanted or {name: min(seeds, variant.seeds) for name, variant in study.variants.items()}
    jobs = [(name, seed) for name, count in wanted.items() for seed in range(count)]
    for (name, seed), run in zip(jobs, _each(study.name, jobs, updates, parallel)):
        say(
            f"{study.name}, {name}, seed {seed}: return {run['return']:.3g}, Q {run['value/mean']:.3g}, bias "
            f"{run['bias']:.3g}, {run['seconds']:.0f} s"
        )
        # what another call has found stays until it is found again
        before = done.get(name, {"seeds": {}})["seeds"]
        done[name] = {"said": study.variants[name].said, "seeds": before | {str(seed): run}}
        yield {
            "title": study.title, "updates": updates or study.updates, "bound": study.bound, "variants": done,
            "verdicts": study.verdicts(done),
        }


def _each(study: str, jobs: Sequence[tuple[str, int]], updates: int, parallel: int) -> Iterator[dict[str, Any]]:
    """What each job found, in their order, as it comes."""
    tasks = [(study, name, seed, updates) for name, seed in jobs]
    if parallel == 1:
        yield from map(_job, tasks)
        return
    with ProcessPoolExecutor(parallel, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_job, tasks)


def _job(task: tuple[str, str, int, int]) -> dict[str, Any]:
    study, name, seed, updates = task
    torch.set_num_threads(1)
    return load_module("worldmodel.configs.reach").studies()[study].run(name, seed, updates or None)


def passed(found: dict[str, Any]) -> bool:
    """Whether everything came out as it had to."""
    return all(verdict["passed"] for study in found["experiments"].values() for verdict in study["verdicts"])


def read(path: Path) -> dict[str, Any]:
    """An earlier document. Raises UserError where it is none."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; give another --json") from error
    return document


def rows(study: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each variant, ``COLUMNS``; numbers of all seeds."""
    out = []
    for name, variant in study["variants"].items():
        runs = list(variant["seeds"].values())
        cells = [", ".join(f"{run[key]:.3g}" for run in runs) for key in ("value/mean", "return", "bias")]
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        out.append((name, variant["said"], str(len(runs)), *cells, f"{seconds:.0f}"))
    return out


COLUMNS = ("variant", "what", "seeds", "mean Q", "return", "bias at start", "s")


def table(found: dict[str, Any]) -> RenderableType:
    """The document for people."""
    parts: list[RenderableType] = []
    for study in found["experiments"].values():
        bound = "" if study["bound"] is None else f"; no true value exceeds {study['bound']:g}"
        parts.append(Text(f"{study['title']}, {study['updates']:,} updates{bound}", style="bold"))
        grid = Table(box=None, padding=(0, 1, 0, 2))
        for column in COLUMNS:
            grid.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
        for row in rows(study):
            grid.add_row(*row)
        parts.append(grid)
        for verdict in study["verdicts"]:
            numbers = ", ".join(f"{x:g}" for x in verdict["found"])
            word, style = ("holds", "green") if verdict["passed"] else ("FAILS", "red")
            parts.append(Text(f"  {word}  {verdict['what']}: {numbers}", style=style))
    return Group(*parts)


def markdown(found: dict[str, Any]) -> str:
    """The tables for docs/results."""
    lines = []
    for study in found["experiments"].values():
        lines += [f"### {study['title']}", "", f"{study['updates']:,} updates.", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(row) + " |" for row in rows(study)]
        lines.append("")
        for verdict in study["verdicts"]:
            numbers = ", ".join(f"{x:g}" for x in verdict["found"])
            lines.append(f"- {'holds' if verdict['passed'] else '**fails**'}: {verdict['what']} (found {numbers})")
        lines.append("")
    return "\n".join(lines)
