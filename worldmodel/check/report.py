"""What a conformance test found, and the loop that runs its checks."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worldmodel.errors import UserError

S = TypeVar("S")

Status = Literal["pass", "fail", "skip"]

_MARKS: dict[Status, tuple[str, str]] = {
    "pass": ("pass", "green"), "fail": ("FAIL", "bold red"), "skip": ("skip", "dim"),
}
_HERE = Path(__file__).parent
_FOREIGN = ("site-packages", "dist-packages", "/torch/", "<frozen", "<string>")


class Broken(Exception):
    """A promise that was not kept: names the method, what it did, and the fix."""


class Skip(Exception):
    """A check that does not apply here, and why."""


class ConformanceError(AssertionError):
    """Some checks failed; the text lists them."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What is promised: "reset forgets the past"."""
    status: Status
    said: str
    """fail: the method and the fix; skip: why; pass: a figure, or nothing."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of a conformance test."""

    kind: str
    name: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What failed, in the order of the checks."""
        return tuple(finding for finding in self.findings if finding.status == "fail")

    def require(self) -> Report:
        """This report, for a test of yours. Raises ConformanceError with every sentence where something failed."""
        if self.failures:
            lines = [f"{self.name} is no conforming {self.kind}:"]
            raise ConformanceError("\n".join([*lines, *(f"- {f.check}: {f.said}" for f in self.failures)]))
        return self

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = [asdict(finding) for finding in self.findings]
        return {"kind": self.kind, "name": self.name, "passed": self.passed, "checks": checks}


@dataclass(frozen=True)
class Check(Generic[S]):
    """One promise, and the function that puts a subject to it."""

    title: str
    run: Callable[[S], str | None]
    """Raises Broken or Skip; what it returns is said beside "pass"."""
    is_needed: bool = False
    """Without it the checks that follow would only tell the same again, so they are skipped."""


def examine(kind: str, name: str, checks: Sequence[Check[S]], subject: S) -> Report:
    """Run every check; no check stops the others, unless it is needed by them."""
    findings: list[Finding] = []
    missing = ""
    for check in checks:
        began = time.perf_counter()
        status, said = ("skip", f"not reached: needs {missing!r}") if missing else _outcome(check, subject)
        findings.append(Finding(check=check.title, status=status, said=said, seconds=time.perf_counter() - began))
        if status == "fail" and check.is_needed:
            missing = check.title
    return Report(kind=kind, name=name, findings=tuple(findings))


def _outcome(check: Check[S], subject: S) -> tuple[Status, str]:
    try:
        return "pass", check.run(subject) or ""
    except Skip as reason:
        return "skip", str(reason)
    except Broken as fault:
        return "fail", str(fault)
    except Exception as error:  # foreign code raises anything, and that is what we want to tell
        return "fail", raised(error)


def raised(error: BaseException) -> str:
    """A foreign exception as a sentence: where in the user's code, what, and its first line. Ours are sentences."""
    if isinstance(error, UserError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).parent != _HERE and not any(part in f.filename for part in _FOREIGN)]
    where = f"{own[-1].name} ({Path(own[-1].filename).name}, line {own[-1].lineno}) " if own else ""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "without a message")
    return f"{where}raised {type(error).__name__}: {text}"


def table(report: Report) -> RenderableType:
    """The report for people."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column()
    rows.add_column(justify="right", style="dim")
    rows.add_column(overflow="fold")
    for finding in report.findings:
        mark, style = _MARKS[finding.status]
        said = Text(finding.said, style="" if finding.status == "fail" else "dim")
        rows.add_row(Text(mark, style=style), finding.check, f"{finding.seconds:.2f} s", said)
    counts = {status: sum(f.status == status for f in report.findings) for status in _MARKS}
    verdict = "conforms" if report.passed else "does not conform"
    summary = f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped: {report.name} {verdict}"
    title = Text(f"{report.kind}: {report.name}", style="bold")
    return Group(title, rows, Text(summary, style="green" if report.passed else "bold red"))
