"""The command line: parses, calls, and turns errors into sentences and exit codes. Help takes no torch."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import worldmodel
from worldmodel import config, listing, options, presets
from worldmodel.arguments import (
    BenchOptions,
    CheckOptions,
    DoctorOptions,
    EvalOptions,
    ExportOptions,
    InfoOptions,
    KernelBenchOptions,
    ListOptions,
    PlannerBenchOptions,
    ReachBenchOptions,
    ReportOptions,
    ResumeOptions,
    SweepOptions,
    TrainOptions,
)
from worldmodel.bench import AGAINST, KERNELS, PARTS, PLANNERS, REACH
from worldmodel.errors import DivergenceError, StorageError, UserError, unknown

if TYPE_CHECKING:
    from worldmodel.config import Run
    from worldmodel.train.loop import Summary

USAGE = """\
usage: worldmodel COMMAND [...]

World models learned from pixels, and the agents that learn inside them.

  train [PRESET]   learn, in a new run folder (PRESET: quickstart)
  sweep [PRESET]   learn with many seeds and settings, side by side
  resume RUN       go on from the newest checkpoint of a run folder
  eval RUN         play whole episodes with a trained agent
  export RUN       write a trained agent as programs that run without worldmodel
  bench PART       milliseconds of updates, environments, replay, acting, kernels
  info [PRESET]    what a run would be: configuration, parameters, memory, updates
  data VERB        inspect, convert, collect and mix datasets, to learn from offline
  report RUN...    curves, statistics and dreams of runs, beside published scores
  list [KIND]      presets, envs, cores, objectives, planners
  check FILE:NAME  whether your own world model, core, objective, value learner or environment keeps its promises
  doctor           what this machine has, lacks, and will use

`worldmodel COMMAND --help` tells more, `worldmodel train PRESET --help` every option of a preset.
"""

EXIT_CODES: tuple[tuple[type[UserError], int], ...] = ((StorageError, 75), (DivergenceError, 70), (UserError, 2))
"""sysexits.h: EX_TEMPFAIL, EX_SOFTWARE; and 2, the shell's code for wrong usage."""

FAILING_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
"""What no code of ours can help, wherever it comes from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. An unexpected exception is a bug, and shows its traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _exit_code(words)
        print(end="", flush=True)  # a pipe that is closed is found here, not when Python ends
        return code
    except UserError as error:
        print(f"worldmodel: {error}", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except KeyboardInterrupt:
        print("worldmodel: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `worldmodel ... | head`: nobody reads on, and that is fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in FAILING_DISK:
            raise
        where = error.filename or "the disk"
        print(f"worldmodel: {where}: {error.strerror}; free some space or use another disk", file=sys.stderr)
        return 75


def _exit_code(words: list[str]) -> int:
    try:
        return _run(words)
    except SystemExit as stop:  # tyro printed help
        return stop.code if isinstance(stop.code, int) else 0


def _run(words: list[str]) -> int:
    if not words or words[0] in options.HELP:
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        print(worldmodel.__version__)
        return 0
    if words[0] not in COMMANDS:
        raise UserError(unknown("command", words[0], COMMANDS))
    return COMMANDS[words[0]](words[1:])


def train(argv: list[str]) -> int:
    """``worldmodel train [PRESET] [--run-dir DIR] [overrides]``."""
    name, rest = _preset(argv)
    if not name and any(word in options.HELP for word in rest):
        print(_train_help(), end="")
        return 0
    preset = presets.find_preset(name or presets.DEFAULT)
    run, arguments, extra = presets.parse(preset, rest, TrainOptions(), prog=f"worldmodel train {preset.name}")
    folder = Path(extra.run_dir) if extra.run_dir else presets.default_folder(preset, arguments, run)
    from worldmodel import runs

    return _finish(runs.start(run, folder, preset=preset.name, preset_args=arguments), folder, run)


def sweep(argv: list[str]) -> int:
    """``worldmodel sweep PRESET --seeds 0..4 [--set KEY=A,B] [--on local|ray] --out DIR [overrides]``."""
    name, rest = _preset(argv)
    if any(word in options.HELP for word in rest):
        options.parse(SweepOptions, ["--help"], prog="worldmodel sweep PRESET")
    asked, words = options.partition(SweepOptions, rest, prog="worldmodel sweep")
    from worldmodel.sweep import run

    return run.sweep(name or presets.DEFAULT, words, asked, say=_note)


def resume(argv: list[str]) -> int:
    """``worldmodel resume RUN [--train.steps N ...]``."""
    if not argv or argv[0].startswith("-"):
        if any(word in options.HELP for word in argv):
            print(f"usage: worldmodel resume RUN [--train.steps N] [...]\n\n{_RESUME}")
            return 0
        raise UserError("resume needs a run folder first: `worldmodel resume RUN`")
    folder, rest = Path(argv[0]), argv[1:]
    prog = f"worldmodel resume {folder}"
    asked = options.parse_known(ResumeOptions, rest, prog=prog)
    allow = [presets.module_name(where) for where in asked.allow]
    from worldmodel import runs

    changed: list[Run] = []

    def change(old: Run) -> Run:
        changed.append(presets.override(old, rest, ResumeOptions(), prog=prog, description=_RESUME)[0])
        return changed[-1]

    summary = runs.resume(folder, change=change, allow=allow)
    return _finish(summary, folder, changed[-1])


def evaluate(argv: list[str]) -> int:
    """``worldmodel eval RUN --episodes N [--sampled] [--planner NAME] [--json]``."""
    asked = options.parse(EvalOptions, argv, prog="worldmodel eval")
    allow = [presets.module_name(where) for where in asked.allow]
    from worldmodel import runs
    from worldmodel.specs import evaluation_env

    def change(run: Run) -> Run:
        if not asked.planner:
            return run
        horizon = {"horizon": asked.horizon} if asked.horizon else {}
        return presets.planned(run, presets.find_planner(asked.planner, trajectories=asked.trajectories, **horizon))

    scores, loaded = runs.evaluate(
        asked.run, episodes=asked.episodes, explore=asked.sampled, seed=asked.seed, device=asked.device,
        say=_note, allow=allow, change=change,
    )
    how, summary = "sampled" if asked.sampled else asked.planner or "mode", scores.summary()
    env = evaluation_env(loaded.run.env).name
    if asked.json:
        document = {
            "run": str(asked.run), "env": env, "step": loaded.checkpoint.step, "acting": how,
            "seed": asked.seed, **summary, "returns": scores.returns, "lengths": scores.lengths,
        }
        print(json.dumps(document, indent=2))
    else:
        print(
            f"{env} at {loaded.checkpoint.step:,} decisions: return {summary['return']:.4g} "
            f"+- {summary['return_sem']:.2g} by {how}, {asked.episodes} episodes of {summary['length']:.0f} decisions, "
            f"from {summary['return_min']:.4g} to {summary['return_max']:.4g}"
        )
    return 0


def bench(argv: list[str]) -> int:
    """``worldmodel bench update|envs|replay|act [PRESET] [--json FILE] [--against PATH] [overrides]``."""
    if not argv or argv[0] in options.HELP:
        print(_BENCH)
        return 0
    part, (name, rest) = argv[0], _preset(argv[1:])
    if part == KERNELS:
        return _bench_kernels(argv[1:])
    if part == PLANNERS:
        return _bench_planners(argv[1:])
    if part == REACH:
        return _bench_reach(argv[1:])
    if part not in PARTS:
        raise UserError(unknown("part to measure", part, (*PARTS, KERNELS, PLANNERS, REACH)))
    # Threads that spin while they wait slow down whoever shares the machine, a peer that is measured in turn too; torch
    # reads this once, when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    preset = presets.find_preset(name or presets.DEFAULT)
    run, arguments, asked = presets.parse(preset, rest, BenchOptions(), prog=f"worldmodel bench {part} {preset.name}")
    if asked.against and part not in AGAINST:
        raise UserError(f"--against goes with {', '.join(AGAINST)}, not with {part}; leave it out")
    peer: Run | None = None
    if asked.peer_options:
        if part != "update" or not asked.against:
            raise UserError("--peer-options sizes the peer of `bench update --against PATH`; leave it out")
        peer, _, _ = presets.parse(preset, shlex.split(asked.peer_options), TrainOptions(), prog="--peer-options of")
    from worldmodel.bench import report
    from worldmodel.bench.setup import Bench, write
    from worldmodel.bench.timing import Plan

    try:
        measured = Bench(
            run=run, plan=Plan(blocks=asked.blocks, seconds=asked.seconds, warmup=asked.warmup), held=asked.held,
            batches=asked.batches, against=Path(asked.against) if asked.against else None, python=asked.peer_python,
            peer_agent=peer.agent if peer else None, say=_note,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    said = {
        "command": shlex.join(["worldmodel", "bench", *argv]), "preset": preset.name, "preset_args": arguments,
        "changed": config.diff(preset.build(arguments), run),
    }
    found = report.document(part, measured, said)
    _show(report.table(found))
    if asked.json:
        write(Path(asked.json), found)
    return 0


def _bench_kernels(argv: list[str]) -> int:
    """``worldmodel bench kernels [KERNEL...] [--device cuda] [--json FILE]``."""
    asked = options.parse(KernelBenchOptions, argv, prog="worldmodel bench kernels")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from worldmodel.bench import kernels
    from worldmodel.bench.setup import write
    from worldmodel.bench.timing import Plan
    from worldmodel.runs import pick_device

    try:
        plan = Plan(blocks=asked.blocks, seconds=asked.seconds, warmup=asked.warmup)
    except ValueError as error:
        raise UserError(str(error)) from error
    said = {"command": shlex.join(["worldmodel", "bench", KERNELS, *argv])}
    found = kernels.document(asked.kernels, device=pick_device(asked.device), plan=plan, said=said, say=_note)
    _show(kernels.table(found))
    if asked.json:
        write(Path(asked.json), found)
    return 0


def _bench_planners(argv: list[str]) -> int:
    """``worldmodel bench planners LAYER... [--runs RUN...] [--planners NAME...] [--out DIR]``."""
    asked = options.parse(PlannerBenchOptions, argv, prog="worldmodel bench planners")
    allow = [presets.module_name(where) for where in asked.allow]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from worldmodel.bench.planners import document
    from worldmodel.bench.planners.contest import Contest
    from worldmodel.bench.timing import Plan

    try:
        contest = Contest(
            planners=asked.planners, budgets=asked.budgets, seeds=asked.seeds, episodes=asked.episodes, say=_note
        )
        plan = Plan(seconds=asked.seconds)
    except ValueError as error:
        raise UserError(str(error)) from error
    found = document.measure(
        asked.layers, contest, problems=asked.problems, tasks=asked.tasks, frames=asked.frames, folders=asked.runs,
        allow=allow, chosen=asked.presets, batches=asked.batches, plan=plan, device=asked.device,
        said={"command": shlex.join(["worldmodel", "bench", PLANNERS, *argv])},
    )
    written = document.write(asked.out, found)
    print(document.markdown(found))
    print(f"\n{', '.join(str(path) for path in written)}")
    return int(any(row.get("broken") for row in found["rows"] + found["latency"]))


def _bench_reach(argv: list[str]) -> int:
    """``worldmodel bench reach [EXPERIMENT...] [--quick] [--json FILE] [--figures DIR]``."""
    asked = options.parse(ReachBenchOptions, argv, prog="worldmodel bench reach")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from worldmodel.bench import reach, reach_figures
    from worldmodel.bench.setup import write

    path = Path(asked.json) if asked.json else None
    found = reach.document(
        asked.experiments, seeds=asked.seeds, variants=asked.variants, updates=asked.updates, quick=asked.quick,
        parallel=asked.parallel,
        said={"command": shlex.join(["worldmodel", "bench", REACH, *argv])}, say=_note,
        earlier=reach.read(path) if path else None, keep=lambda so_far: write(path, so_far) if path else None,
    )
    _show(reach.table(found))
    if path:
        write(path, found)
    if asked.markdown:
        Path(asked.markdown).write_text(reach.markdown(found))
    if asked.figures:
        for picture in reach_figures.draw(found, Path(asked.figures)):
            print(picture)
    return 0 if reach.passed(found) else 1


def data(argv: list[str]) -> int:
    """``worldmodel data inspect|convert|collect|mix ...``."""
    from worldmodel import datasets

    if not argv or argv[0] in options.HELP:
        print(datasets.USAGE)
        return 0
    if argv[0] not in datasets.VERBS:
        raise UserError(unknown("data command", argv[0], datasets.VERBS))
    print(datasets.VERBS[argv[0]](argv[1:], _note))
    return 0


def report(argv: list[str]) -> int:
    """``worldmodel report RUN... [--out DIR]``."""
    asked = options.parse(ReportOptions, argv, prog="worldmodel report")
    from worldmodel.report.write import write

    # a sweep's folder holds its table and logs beside the runs, and the shell's * names all of them
    folders = tuple(path for path in asked.runs if not path.is_file())
    written = write(folders or asked.runs, asked.out)
    for sentence in written.warnings:
        _note(f"worldmodel: {sentence}")
    print(f"{written.page}\n{len(written.pictures)} charts in {asked.out}")
    return 0


def export(argv: list[str]) -> int:
    """``worldmodel export RUN --out DIR [--onnx]``."""
    asked = options.parse(ExportOptions, argv, prog="worldmodel export")
    from worldmodel.export import MANIFEST, export_run

    allow = [presets.module_name(where) for where in asked.allow]
    manifest = export_run(asked.run, asked.out, onnx=asked.onnx, say=_note, allow=allow)
    print(f"{manifest['env']} at {manifest['step']:,} decisions")
    for name, program in manifest["programs"].items():
        for kind in ("pt2", "onnx"):
            if "file" in program.get(kind, {}):
                gap = program[kind]["difference"]
                said = "not compared: no onnxruntime" if gap is None else f"differs from the agent by {gap:.1g}"
                print(f"  {name:7} {asked.out / program[kind]['file']}  ({said})")
    print(f"  how to call them: {asked.out / MANIFEST}")
    return 0


def info(argv: list[str]) -> int:
    """``worldmodel info [PRESET] [overrides] [--json]``."""
    name, rest = _preset(argv)
    preset = presets.find_preset(name or presets.DEFAULT)
    run, arguments, extra = presets.parse(preset, rest, InfoOptions(), prog=f"worldmodel info {preset.name}")
    from worldmodel import info as details

    facts = {
        "preset": preset.name, "preset_args": arguments, "changed": config.diff(preset.build(arguments), run),
        **details.describe(run),
    }
    if extra.json:
        print(json.dumps(facts, indent=2))
    else:
        chosen = " ".join(f"--{key} {value}" for key, value in arguments.items())
        _show(details.table(facts, f"{preset.name} {chosen}"))
    return 0


def list_(argv: list[str]) -> int:
    """``worldmodel list [presets|envs|cores|objectives|planners] [--json]``."""
    asked = options.parse(ListOptions, argv, prog="worldmodel list")
    found = {kind: listing.entries(kind) for kind in listing.KINDS if asked.kind in ("all", kind)}
    if asked.json:
        print(json.dumps(found, indent=2))
        return 0
    for kind, entries in found.items():
        print(kind)
        print(_lines(entries))
    return 0


def check(argv: list[str]) -> int:
    """``worldmodel check FILE:NAME [--kind KIND] [--json]``."""
    asked = options.parse(CheckOptions, argv, prog="worldmodel check")
    from worldmodel.check import report as reports
    from worldmodel.check import target

    report = target.check_target(
        asked.target, kind=asked.kind, obs=asked.obs, pixels=asked.pixels, action=asked.action, device=asked.device
    )
    if asked.json:
        print(json.dumps(report.document(), indent=2))
    else:
        _show(reports.table(report))
    return 0 if report.passed else 1


def doctor(argv: list[str]) -> int:
    """``worldmodel doctor [--json]``."""
    asked = options.parse(DoctorOptions, argv, prog="worldmodel doctor")
    from worldmodel import doctor as examination

    report = examination.examine()
    if asked.json:
        print(json.dumps({"healthy": report.is_healthy, **dataclasses.asdict(report)}, indent=2))
    else:
        _show(examination.table(report))
    return 0 if report.is_healthy else 1


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train, "sweep": sweep, "resume": resume, "eval": evaluate, "export": export, "bench": bench, "info": info,
    "data": data, "report": report, "list": list_, "check": check, "doctor": doctor,
}

_BENCH = """usage: worldmodel bench PART [PRESET] [--json FILE] [--OPTION VALUE ...]

Measure a part of a run on this machine, on random content. PART is one of

  update   milliseconds of an update, by phase and by part of the networks
  envs     environment steps per second, by kind of pool and by renderer
  replay   milliseconds of drawing and adding
  act      latency of acting by number of environments
  kernels  time of each kernel beside its reference, after its tests; takes kernels instead of a preset
  planners every planner on known systems, on the truth, on trained agents, and against the clock; takes layers
  reach    agents that bootstrap from where no data is; takes experiments instead of a preset

`worldmodel bench update PRESET --help` lists the options: --json, --against, --seconds, ..., and all of the run's."""

_RESUME = """Go on from the newest checkpoint of a run folder.

Only length, cadence and machine may change: --train.steps, --train.eval-every, --train.threads, --device, ...
And, after exploring: --agent.intrinsic, --agent.extrinsic, and --train.min-updates to learn before acting goes on."""


def _preset(argv: list[str]) -> tuple[str, list[str]]:
    """The preset comes first; without one the first word is an option, or there is none."""
    return (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)


def _train_help() -> str:
    return (
        "usage: worldmodel train [PRESET] [--run-dir DIR] [--OPTION VALUE ...]\n\n"
        "Learn in a new run folder. PRESET is one of these, or your own: my_pkg.runs:fn, ./my_model.py:run\n\n"
        f"{_lines(listing.entries('presets'))}\n\n"
        "`worldmodel train PRESET --help` lists the options of a preset: its own (--task, --size) and every field of\n"
        "the run it makes (--agent.lr, --train.steps).\n"
    )


def _lines(entries: dict[str, str]) -> str:
    width = max(map(len, entries), default=0)
    return "\n".join(f"  {name:{width}}  {line}" for name, line in entries.items())


def _finish(summary: Summary, folder: Path, run: Run) -> int:
    """Say how it ended, where the pictures are, and what to type next; the exit code."""
    from worldmodel.train.pictures import draw_curve, newest
    from worldmodel.train.signals import exit_code

    if summary.reason == "followed":  # one of several processes; rank 0 speaks for all
        return 0
    try:
        draw_curve(folder, run.env.name)
    except (StorageError, OSError, ValueError) as error:  # the run itself is done and saved
        _note(f"worldmodel: no learning curve: {error}")
    scores = ", ".join(f"{s.mean:.4g} {'by mode' if how == 'mode' else how}" for how, s in summary.scores.items())
    lived = "" if run.is_offline else f"{summary.env_steps:,} decisions, "
    print(f"\n{lived}{summary.updates:,} updates, {summary.seconds:.0f} s" + (f"; return {scores}" if scores else ""))
    for name, path in newest(folder).items():
        print(f"  {name:15} {path}")
    if summary.reason == "signal" and summary.signal is not None:
        print(f"stopped by a signal; go on with\n  worldmodel resume {folder}")
        return exit_code(summary.signal)
    print(
        f"next\n  worldmodel eval {folder}\n  worldmodel resume {folder} --train.steps {2 * run.train.steps}\n"
        f"  tensorboard --logdir {folder.parent}"
    )
    return 0


def _note(text: str) -> None:
    """What people should know, out of the way of what machines read."""
    print(text, file=sys.stderr)


def _show(content: Any) -> None:
    from rich.console import Console

    Console(highlight=False, emoji=False).print(content)
