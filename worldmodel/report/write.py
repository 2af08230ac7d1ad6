"""``worldmodel report``: from run folders to a page and its pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import worldmodel
from worldmodel import published
from worldmodel.errors import StorageError, UserError
from worldmodel.report import charts, compare, curves, folders, page, stats
from worldmodel.report.charts import Line
from worldmodel.report.compare import Suite, Task
from worldmodel.report.curves import Method
from worldmodel.report.folders import KINDS, Kind, Record
from worldmodel.report.page import Cell

PAGE = "report.html"
LARGEST_DREAM, ALL_DREAMS = 4 << 20, 24 << 20
"""Bytes of one dream video, and of all of them, that a page takes in; others are named by their path."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written."""

    page: Path
    pictures: tuple[Path, ...]
    warnings: tuple[str, ...]
    """What a reader must know: runs that are unfinished, failed or empty, and scores that were left out."""


def write(run_dirs: Sequence[Path], out: Path) -> Report:
    """Write ``report.html``, which needs no other file, and each of its charts as a PNG beside it.

    Raises:
        UserError: no run folder was given, one is not a run folder or damaged, none has scores, matplotlib is missing.
        StorageError: ``out`` cannot be written.
    """
    charts.require()
    paths = list(dict.fromkeys(Path(run_dir).resolve() for run_dir in run_dirs))
    if not paths:
        raise UserError("a report needs run folders: `worldmodel report runs/a runs/b`")
    records = [folders.read(path) for path in paths]
    if not any(record.series for record in records):
        raise UserError(
            f"{'this run has' if len(records) == 1 else f'these {len(records)} runs have'} no finite scores: no "
            "episode ended and nothing was evaluated, or it gave NaN; train for longer, then ask again"
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    draft = _Draft(records=records)
    draft.compose()
    return draft.save(out)


@dataclass
class _Draft:
    """The page while it is made."""

    records: list[Record]
    parts: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    used: dict[tuple[str, str], published.Table] = field(default_factory=dict)
    """Published tables that the page shows."""

    def __post_init__(self) -> None:
        self.methods = curves.methods(self.records)
        self.tasks = compare.tasks(self.records)
        self.warnings = _warnings(self.records, self.methods)

    def compose(self) -> None:
        """All sections, in order."""
        runs, methods, tasks = len(self.records), len(self.methods), len(self.tasks)
        self.parts.append(page.heading(1, _title(self.tasks)))
        self.parts.append(page.paragraph(
            f"{_count(runs, 'run')} of {_count(methods, 'configuration')} on {_count(tasks, 'task')}"
            f"{'' if tasks == 1 else ', each compared on its own'}. Runs whose configurations differ in nothing but "
            "seed, task and length are one group. Intervals are 95 % percentile intervals of the "
            "stratified bootstrap over seeds; with one seed there is none."
        ))
        if self.warnings:
            self.parts.append(page.warning("Read with care", self.warnings))
        for suite in compare.suites(self.methods, self.tasks):
            self._suite(suite)
        for task in self.tasks:
            self._task(task)
        self._improvement()
        self._dreams()
        self._settings()
        self._runs()
        self._sources()
        self.parts.append(page.footer(f"Written by worldmodel {worldmodel.__version__}."))

    def save(self, out: Path) -> Report:
        """Write everything; the page last."""
        try:
            for name, png in self.pictures.items():
                (out / name).write_bytes(png)
            (out / PAGE).write_text(page.document(_title(self.tasks), self.parts), encoding="utf-8")
        except OSError as error:
            raise _unwritable(out, error) from error
        return Report(
            page=out / PAGE, pictures=tuple(out / name for name in self.pictures), warnings=tuple(self.warnings)
        )

    def _picture(self, name: str, png: bytes, description: str, caption: str = "") -> tuple[bytes, str, str]:
        self.pictures[f"{name.replace('/', '_').replace('+', '_')}.png"] = png
        return png, description, caption

    def _suite(self, suite: Suite) -> None:
        frames = sorted({task.frames for task in suite.tasks})
        at = f"{frames[0]:,}" if len(frames) == 1 else f"{frames[0]:,} to {frames[-1]:,}"
        self.parts.append(page.heading(2, f"{suite.benchmark}: {len(suite.tasks)} tasks, {KINDS[suite.kind]}"))
        self.parts.append(page.paragraph(
            f"Scores ({suite.unit}) of {_count(len(suite.tasks), 'task')}, each at the frames that all its runs have "
            f"reached ({at}). IQM is the mean of the middle half of all runs; the optimality gap is how far runs "
            "fall short of 1. Published methods are shown where they have a score for every one of these tasks at "
            "these frames; each has its own protocol (see Sources)."
        ))
        shown = {line.label for line, _ in suite.rows}
        for index, table in enumerate(compare.tables(suite.benchmark, suite.kind)):
            if compare.line_of(table, index).label in shown:
                self.used[table.benchmark, table.name] = table
        rows = [(line, suite.scores(i)) for i, (line, _) in enumerate(suite.rows)]
        name = f"{suite.benchmark}_{suite.kind}"
        title = f"{suite.benchmark}, {_count(len(suite.tasks), 'task')}"
        few = _few(suite)
        tasks = charts.by_task(title, [(line, suite.rows[i][1]) for i, line in few.items()], suite.unit)
        profiles = charts.profiles(title, [(line, rows[i][1]) for i, line in few.items()], suite.unit)
        wide = self._picture(
            f"{name}_aggregates", charts.aggregates(title, rows, suite.unit), f"aggregate scores on {suite.benchmark}"
        )
        self.parts.append(page.pictures([wide], wide=True))
        self.parts.append(page.pictures([
            self._picture(f"{name}_tasks", tasks, f"{suite.unit} of each task of {suite.benchmark}"),
            self._picture(f"{name}_profile", profiles, f"performance profiles on {suite.benchmark}"),
        ]))
        cells = []
        for line, scores in rows:
            aggregates = [_interval(stats.bootstrap(f, scores), "{:.3f}") for f in stats.AGGREGATES.values()]
            fewest, most = min(map(len, scores)), max(map(len, scores))
            seeds = str(fewest) if fewest == most else f"{fewest} to {most}"
            cells.append([line.label, Cell(seeds), *map(Cell, aggregates)])
        self.parts.append(page.table(
            ["method", "seeds per task", *stats.AGGREGATES], cells, published=[line.is_published for line, _ in rows]
        ))

    def _task(self, task: Task) -> None:
        self.parts.append(page.heading(2, task.name))
        images = []
        for kind in task.kinds:
            lines = []
            for index, method in enumerate(self.methods):
                curve = compare.our_curve(method, task, kind)
                if curve is not None:
                    lines.append((Line(label=method.label, index=index), curve))
            last = float(max(record.frames for record in task.records))
            for index, table in enumerate(compare.tables(task.benchmark, kind)):
                curve = curves.published_curve(table, task.game)
                if curve is not None and curve.frames[0] <= last:
                    self.used[table.benchmark, table.name] = table
                    lines.append((compare.line_of(table, index), curve))
            if lines:
                png = charts.learning_curves(task.name, KINDS[kind], lines, last)
                images.append(self._picture(f"{task.name}_{kind}", png, f"learning curves of {task.name}"))
        self.parts.append(page.pictures(images))
        self.parts.append(page.paragraph(
            f"A curve is thin where not all of its seeds have a score. The scores below are those at {task.frames:,} "
            "frames, which all of these runs have reached: the mean of the training episodes of the last "
            f"{100 / curves.POINTS:g} % of the frames, or evaluations interpolated to there. P(A is better) is the "
            "probability that a run of A scores higher than a run of that row."
        ))
        if not any([self._scores(task, kind) for kind in task.kinds]):
            first = min(task.records, key=lambda record: record.frames).name
            self.parts.append(
                page.paragraph(f"There is no score at these frames yet; leave {first} out for later ones.")
            )

    def _scores(self, task: Task, kind: Kind) -> bool:
        """One row per method, ours and published; False where ours have no score yet."""
        entries = [(method.label, compare.our_scores(method, task, kind), False) for method in self.methods]
        for index, table in enumerate(compare.tables(task.benchmark, kind)):
            scores = compare.published_scores(table, task)
            entries.append((compare.line_of(table, index).label, scores, True))
            if len(scores):
                self.used[table.benchmark, table.name] = table
        entries = [entry for entry in entries if len(entry[1])]
        if all(is_published for *_, is_published in entries):
            return False
        first = entries[0][1]
        show_scale = task.scale is not None and task.benchmark.startswith("atari")
        form, rows = _form(max(float(np.abs(scores).max()) for _, scores, _ in entries)), []
        for label, scores, _ in entries:
            better = float(stats.probability_of_improvement([first], [scores]))
            row = [
                label, Cell(len(scores)), Cell(_interval(stats.bootstrap(stats.mean, [scores]), form)),
                Cell(form.format(float(stats.iqm([scores])))), Cell(form.format(np.median(scores))),
                Cell(f"{form.format(scores.min())} to {form.format(scores.max())}"),
            ]
            row += [Cell(f"{compare.normalised(scores, task).mean():.3f}")] if show_scale else []
            rows.append([*row, Cell("" if scores is first else f"{better:.2f}")])
        head = ["method", "seeds", "mean [95 % interval]", "IQM", "median", "lowest to highest seed"]
        head += ["human-normalised"] if show_scale else []
        self.parts.append(page.heading(3, KINDS[kind][0].upper() + KINDS[kind][1:]))
        self.parts.append(page.table(
            [*head, f"P({entries[0][0].split()[0]} is better)"], rows, published=[entry[2] for entry in entries]
        ))
        return True

    def _improvement(self) -> None:
        rows = []
        for kind in ("train", "mode"):
            for ours, theirs in itertools.combinations(self.methods, 2):
                found = compare.improvement(ours, theirs, self.tasks, kind)
                if found is not None:
                    probability = Cell(_interval(found[1], "{:.2f}"))
                    rows.append([ours.label, theirs.label, KINDS[kind], Cell(found[0]), probability])
        if rows:
            self.parts.append(page.heading(2, "Probability of improvement"))
            self.parts.append(page.paragraph(
                "How likely a run of the first scores higher than a run of the second on the same task, mean over the "
                "tasks that both ran; a tie counts half. An interval that holds 0.5 decides nothing."
            ))
            self.parts.append(page.table(["first", "second", "scores", "tasks", "probability [95 % interval]"], rows))

    def _dreams(self) -> None:
        images, left_out, total = [], [], 0
        for method in self.methods:
            for record in method.records:
                if record.dream is None:
                    continue
                size = record.dream.stat().st_size
                if size > LARGEST_DREAM or total + size > ALL_DREAMS:
                    left_out.append(f"{record.dream} ({size / 2**20:.1f} MiB)")
                    continue
                total += size
                step = int(record.dream.stem.rpartition("-")[2])
                caption = f"{method.letter}: {record.name}, after {step:,} decisions"
                images.append((record.dream.read_bytes(), f"dream of {record.name}", caption))
        if images or left_out:
            self.parts.append(page.heading(2, "Dreams"))
            self.parts.append(page.paragraph(
                "Truth above, the model in the middle, its error below. In a green frame the model is shown the truth "
                "and reconstructs; in a red one it goes on from the actions alone."
            ))
            self.parts.append(page.pictures(images))
        if left_out:
            self.parts.append(page.paragraph("Too large for this page: " + "; ".join(left_out) + "."))

    def _settings(self) -> None:
        self.parts.append(page.heading(2, "What differs between the configurations"))
        if len(self.methods) < 2:
            self.parts.append(page.paragraph("All runs have the same configuration but for the seed and the task."))
            return
        rows = curves.differences([method.settings for method in self.methods])
        self.parts.append(page.table(
            ["setting", *(method.label for method in self.methods)],
            [[path, *map(curves.show, values)] for path, *values in rows],
        ))

    def _runs(self) -> None:
        self.parts.append(page.heading(2, "Runs"))
        rows = [
            [
                record.name, method.letter, record.task, Cell(record.seed), Cell(f"{record.frames:,}"), record.status,
                "; ".join(record.notes), record.commit,
            ]
            for method in self.methods for record in method.records
        ]
        self.parts.append(page.table(
            ["run", "group", "task", "seed", "frames", "status", "notes", "commit of the code"], rows
        ))

    def _sources(self) -> None:
        if not self.used:
            return
        self.parts.append(page.heading(2, "Sources of the published scores"))
        self.parts.append(page.paragraph(
            "Numbers as released by their authors, one per seed where they released these. Protocols differ: compare "
            "with the method whose protocol is that of the runs."
        ))
        rows = []
        for (benchmark, _), table in sorted(self.used.items()):
            where = f"{table.source['repo']}, {table.source['path']}, commit {table.source['commit'][:7]}"
            number = "; ".join(text for text in (table.number, table.settings) if text)
            rows.append([benchmark, table.method, number, table.source["paper"], where])
        self.parts.append(page.table(["benchmark", "method", "what a number is", "paper", "read from"], rows))


def _unwritable(out: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot write {out}: {error.strerror}; give a writable --out")


def _warnings(records: Sequence[Record], methods: Sequence[Method]) -> list[str]:
    said = [f"{record.name} is {record.status}." for record in records if not record.is_finished]
    for note in dict.fromkeys(note for record in records for note in record.notes):
        names = [record.name for record in records if note in record.notes]
        said.append(f"{', '.join(names) if len(names) <= 3 else f'{len(names)} runs'}: {note}.")
    for method in methods:
        seeds = [(record.task, record.seed) for record in method.records]
        for task, seed in sorted({pair for pair in seeds if seeds.count(pair) > 1}):
            said.append(
                f"Group {method.letter} has seed {seed} on {task} more than once: these runs are not independent."
            )
    return said


def _title(tasks: Sequence[Task]) -> str:
    names = [task.name for task in tasks]
    return f"Runs on {', '.join(names)}" if len(names) <= 3 else f"Runs on {len(names)} tasks"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _interval(interval: stats.Interval, form: str) -> str:
    """"0.45 [0.31, 0.60]"; the point alone where the interval is one."""
    point, low, high = (form.format(float(x)) for x in (interval.point, interval.low, interval.high))
    return point if low == high else f"{point} [{low}, {high}]"


def _form(largest: float) -> str:
    """How to write scores up to this size: about four digits, at least one of them after the point."""
    return "{:,.1f}" if largest >= 100 else "{:,.2f}" if largest >= 10 else "{:,.3f}"


def _few(suite: Suite, most: int = 3) -> dict[int, Line]:
    """Rows for a chart that cannot hold all: ours, and of the published ones DreamerV3 and the highest IQMs."""
    lines = [line for line, _ in suite.rows]
    ours = {i: line for i, line in enumerate(lines) if not line.is_published}
    theirs = [i for i, line in enumerate(lines) if line.is_published]
    theirs.sort(key=lambda i: (not lines[i].label.startswith("DreamerV3 2024"), -float(stats.iqm(suite.scores(i)))))
    return ours | {i: replace(lines[i], index=rank) for rank, i in enumerate(theirs[:most])}
