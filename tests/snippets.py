"""Snippets of README.md and docs/: fenced blocks, the commands in them, and whether the command line accepts these.

```python  run, in order, in one folder; a first line "# name.py" makes a block that file instead.
```console lines that begin with "$ " run in the same folder.
```sh, ```bash take long, or need more than this machine: their commands are parsed.
```text    where it begins with "$ worldmodel", the command fails with what follows; otherwise a drawing.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from worldmodel import arguments, options, presets
from worldmodel.bench import KERNELS, PARTS, PLANNERS, REACH
from worldmodel.cli import COMMANDS
from worldmodel.sweep import search
from worldmodel.sweep.plan import make_jobs, parse_grid, parse_seeds

ROOT = Path(__file__).parent.parent
KINDS = {"python", "console", "sh", "bash", "text"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENDS = {";", "&", "|", "&&", "||", ">", ">>", "2>&1", "then"}

PARSED = {
    "eval": arguments.EvalOptions, "report": arguments.ReportOptions, "export": arguments.ExportOptions,
    "list": arguments.ListOptions, "check": arguments.CheckOptions, "doctor": arguments.DoctorOptions,
}

DATA = {
    "inspect": arguments.InspectOptions, "convert": arguments.ConvertOptions, "collect": arguments.CollectOptions,
    "mix": arguments.MixOptions,
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Every fenced block of a page: its kind and its text."""
    return [(match[1], match[2]) for match in BLOCK.finditer(page.read_text())]


def file_name(text: str) -> str | None:
    """The file that a python block stands for."""
    name = re.match(r"# (\w+\.py)\n", text)
    return name[1] if name else None


def command_lines(text: str) -> list[list[str]]:
    """The words of every line of a shell block, with 1 in place of variables."""
    joined = re.sub(r"\$\{?\w+\}?", "1", text.replace("\\\n", " "))
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in lines if words]


def after(words: list[str], *programs: str) -> list[str] | None:
    """What follows one of ``programs`` in a line, up to the next command; None where the line does not call it."""
    at = next((i for i, word in enumerate(words) if word in programs), None)
    if at is None:
        return None
    rest = words[at + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word in ENDS), len(rest))]


def parse(words: list[str]) -> None:
    """Parse what follows ``worldmodel`` as the command does. Raises UserError, or AssertionError for no command."""
    command, rest = words[0], words[1:]
    assert command in COMMANDS, f"there is no command {command}"
    if command in PARSED:
        options.parse(PARSED[command], rest, prog=command)
    elif command == "data":
        options.parse(DATA[rest[0]], rest[1:], prog=command)
    elif command == "resume":
        run = presets.find_preset(presets.DEFAULT).build({})
        presets.override(run, rest[1:], arguments.ResumeOptions(), prog=command)
    elif command == "bench" and rest[0] == KERNELS:
        options.parse(arguments.KernelBenchOptions, rest[1:], prog=command)
    elif command == "bench" and rest[0] == PLANNERS:
        options.parse(arguments.PlannerBenchOptions, rest[1:], prog=command)
    elif command == "bench" and rest[0] == REACH:
        options.parse(arguments.ReachBenchOptions, rest[1:], prog=command)
    elif command == "sweep":
        asked, common = options.partition(arguments.SweepOptions, rest[1:], prog=command)
        spaces = dict(search.parse_space(text) for text in asked.search)
        chosen = [{key: space.choices[0] if space.choices else f"{space.low:g}" for key, space in spaces.items()}]
        make_jobs(rest[0], common, chosen if spaces else parse_grid(asked.set), parse_seeds(asked.seeds), asked.out)
    else:
        own = {"train": arguments.TrainOptions(), "info": arguments.InfoOptions(), "bench": arguments.BenchOptions()}
        if command == "bench":
            assert rest[0] in PARTS, rest
            rest = rest[1:]
        is_named = rest and not rest[0].startswith("-")
        preset = presets.find_preset(rest[0] if is_named else presets.DEFAULT)
        presets.parse(preset, rest[1:] if is_named else rest, own[command], prog=command)
