"""A sweep from its options to its table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worldmodel import presets
from worldmodel.arguments import SweepOptions
from worldmodel.errors import StorageError, UserError
from worldmodel.sweep import table
from worldmodel.sweep.engines import Engine, Local, Ray
from worldmodel.sweep.plan import Job, evaluations, find_state, make_jobs, parse_grid, parse_seeds
from worldmodel.sweep.search import Trial, maximise, parse_space

Say = Callable[[str], None]


def sweep(preset: str, words: Sequence[str], asked: SweepOptions, *, say: Say) -> int:
    """Train what is not finished, and write the table; 0, 1 where a run failed, or a signal's exit code.

    Args:
        words: options of ``worldmodel train PRESET`` that hold for all runs.
        say: told a sentence for each run, and the table.
    Raises: UserError.
    """
    if asked.out == Path():
        raise UserError("a sweep needs a folder: --out sweeps/NAME; the same one goes on with it")
    presets.find_preset(preset)
    seeds, grid = parse_seeds(asked.seeds), parse_grid(asked.set)
    said = {"preset": preset, "options": list(words), "seeds": seeds, "set": asked.set, "search": asked.search}
    engine: Engine = Local(parallel=asked.parallel) if asked.on == "local" else Ray(cpus=asked.cpus, gpus=asked.gpus)
    if asked.search:
        if asked.set:
            raise UserError("a search chooses among lists too: write --set's values as --search key=a,b")
        return _search(preset, words, asked, seeds, engine, said, say)
    jobs = make_jobs(preset, words, grid, seeds, asked.out)
    if asked.dry_run:
        say("\n".join(f"{find_state(job):10} {job.folder}" for job in jobs))
        return 0
    return _train(jobs, engine, asked.out, said, say)


def _train(jobs: Sequence[Job], engine: Engine, out: Path, said: dict[str, Any], say: Say) -> int:
    _make(out)
    codes: dict[str, int] = {}
    left = [job for job in jobs if find_state(job) != "finished"]
    say(f"{len(jobs)} runs, {len(jobs) - len(left)} finished already")

    def done(job: Job, code: int) -> None:
        codes[job.name] = code
        scores = evaluations(job.folder)
        result = f"return {scores[-1][1]:.4g} by mode" if scores else "no evaluation yet"
        say(f"{job.name}: {result}" + (f"; exit code {code}, see {job.log}" if code else ""))

    stopped = engine.run(left, done) if left else 0
    found = table.rows(jobs, codes)
    table.write(out, found, said)
    say(f"\n{table.markdown(found)}\n\nworldmodel report {out}/*")
    return stopped or int(any(codes.values()))


def _search(
    preset: str, words: Sequence[str], asked: SweepOptions, seeds: Sequence[int], engine: Engine, said: dict[str, Any],
    say: Say,
) -> int:
    spaces = dict(parse_space(text) for text in asked.search)
    if len(spaces) < len(asked.search):
        raise UserError("--search names a setting twice")
    if asked.dry_run:
        raise UserError("--dry-run cannot tell what a search will choose; leave it out")
    _make(asked.out)
    outcome = 0

    def score(trials: Sequence[Trial]) -> None:
        nonlocal outcome
        jobs = make_jobs(preset, words, [trial.settings for trial in trials], seeds, asked.out)
        code = _train(jobs, engine, asked.out, said, say)
        outcome = max(outcome, code)
        if code >= 128:
            return
        rows = {json.dumps(row["settings"]): row for row in table.rows(jobs, {})}
        for trial in trials:
            row = rows[json.dumps(trial.settings)]
            trial.failed = bool(row["not_finished"]) or row["mean"] is None
            trial.value = None if trial.failed else row["mean"]

    together = max(1, asked.parallel // len(seeds))
    tried = maximise(
        spaces, out=asked.out, trials=asked.trials, together=together, sampler=asked.sampler, score=score
    )
    jobs = make_jobs(preset, words, [trial.settings for trial in tried], seeds, asked.out)
    found = table.rows(jobs, {})
    table.write(asked.out, found, said)
    say(f"\n{table.markdown(found)}")
    return outcome


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out}: {error.strerror}; give another --out") from error
