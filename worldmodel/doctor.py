"""What is there, what is missing and how to get it, and what a run will use."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from worldmodel.errors import EnvError

Status = Literal["ok", "low", "missing", "broken"]
"""There; there, but little; not there, and runs do without; or in the way of training."""

REQUIRED = ("numpy", "gymnasium", "ale-py", "dm-control", "einops", "pillow", "rich", "safetensors", "scipy", "tyro")
EXTRAS = {
    "mamba-ssm": ("mamba", "comparing our Mamba kernels with theirs on a GPU, see docs/kernels.md"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "minari": ("offline", "offline data sets"),
    "av": ("video", "mp4 videos"),
}
_STYLE = {"ok": "green", "low": "yellow", "missing": "yellow", "broken": "bold red"}
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    """What to do; empty where nothing is wrong."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was looked at, and what a run on this machine will use."""

    findings: list[Finding]
    uses: dict[str, str]

    @property
    def is_healthy(self) -> bool:
        """Whether training works here; optional things may be missing."""
        return all(finding.status != "broken" for finding in self.findings)


def examine(folder: Path = Path()) -> Report:
    """Look at this machine; ``folder`` is where runs would be written. Takes some seconds: OpenGL is really tried."""
    torch = check_torch()
    gl = check_gl()
    findings = [
        check_python(),
        *torch,
        check_triton(),
        *(check_required(name) for name in REQUIRED),
        check_mujoco(),
        gl,
        check_roms(),
        *(check_extra(name) for name in EXTRAS),
        *check_machine(folder),
    ]
    return Report(findings=findings, uses=uses({finding.name: finding for finding in findings}))


def uses(found: dict[str, Finding]) -> dict[str, str]:
    """What a run will use, by the findings."""
    gl = found["OpenGL"]
    backend = gl.found.partition(",")[0]
    device = "cuda" if found["CUDA"].status == "ok" else "cpu"
    return {
        "device": device,
        "kernels": _kernels(device) if found["torch"].status == "ok" else "unknown without torch",
        "threads": f"up to {cores()}, as many as updates are fastest with, unless --train.threads says otherwise",
        "DMC pixels": f"gl ({backend}), gl-fast or ray" if gl.status == "ok" else "ray, which needs no OpenGL",
    }


def _kernels(device: str) -> str:
    from worldmodel.kernels import dispatch

    return dispatch.explain(device)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Python 3.11 or newer."""
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding(name="Python", status="broken", found=text, remedy="install Python 3.11 or newer")
    return Finding(name="Python", status="ok", found=f"{text}, {platform.platform()}")


def check_torch() -> list[Finding]:
    """torch, and whether it sees a GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        remedy = "pip install 'torch>=2.10,<2.14'"
        absent = Finding(name="CUDA", status="missing", found="unknown without torch")
        return [Finding(name="torch", status="broken", found=f"cannot be imported: {error}", remedy=remedy), absent]
    known = (2, 10) <= tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14)
    version = Finding(
        name="torch",
        status="ok" if known else "broken",
        found=torch.__version__,
        remedy="" if known else "pip install 'torch>=2.10,<2.14'",
    )
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found = f"{torch.version.cuda}, {torch.cuda.device_count()} x {p.name}, {p.total_memory / _GIB:.0f} GiB"
        return [version, Finding(name="CUDA", status="ok", found=found)]
    built = torch.version.cuda
    found = f"built for CUDA {built}, but no GPU is visible" if built else "this torch is built for CPUs"
    remedy = "check nvidia-smi and CUDA_VISIBLE_DEVICES" if built else "fine without a GPU; else install a CUDA build"
    return [version, Finding(name="CUDA", status="missing", found=found, remedy=remedy)]


def check_triton(version: Callable[[str], str] = metadata.version) -> Finding:
    """triton, which compiles our GPU kernels."""
    return _package("triton", version, "missing", "only needed on a GPU, where it comes with torch")


def check_required(name: str, version: Callable[[str], str] = metadata.version) -> Finding:
    """A package that training needs."""
    return _package(name, version, "broken", f"pip install {name}")


def check_extra(name: str, version: Callable[[str], str] = metadata.version) -> Finding:
    """A package that one feature needs; it is not imported."""
    extra, what = EXTRAS[name]
    return _package(name, version, "missing", f"pip install {name} (extra [{extra}]) for {what}")


def check_mujoco(version: Callable[[str], str] = metadata.version) -> Finding:
    """MuJoCo 3: dm-control cannot load its tasks with MuJoCo 4."""
    finding = _package("mujoco", version, "broken", "pip install 'mujoco>=3.3,<4'")
    if finding.status == "ok" and int(finding.found.split(".")[0]) >= 4:
        remedy = "dm-control loads no task with MuJoCo 4: pip install 'mujoco>=3.3,<4'"
        return Finding(name="mujoco", status="broken", found=finding.found, remedy=remedy)
    return finding


def check_gl(choose: Callable[[], Any] | None = None) -> Finding:
    """An OpenGL backend that draws, tried in a child process. Without one ``--env.render ray`` still works."""
    from worldmodel.envs.gl import choose_backend

    try:
        choice = (choose or choose_backend)()
    except EnvError as error:
        what, _, remedy = str(error).partition("; run ")
        return Finding(name="OpenGL", status="missing", found=what, remedy=remedy and f"run {remedy}")
    slow = ", software: 10 to 40 frames/s, gl-fast and ray are faster" if choice.is_software else ""
    return Finding(name="OpenGL", status="ok", found=f"{choice.backend}, {choice.device}{slow}")


def check_roms() -> Finding:
    """The Atari games that ale-py brings along."""
    try:
        from worldmodel.envs.atari import games

        count = len(games())
    except (ImportError, EnvError) as error:
        return Finding(name="Atari ROMs", status="missing", found=str(error), remedy="pip install 'ale-py>=0.11'")
    if not count:
        return Finding(name="Atari ROMs", status="missing", found="none", remedy="pip install 'ale-py>=0.11'")
    return Finding(name="Atari ROMs", status="ok", found=f"{count} games")


def check_machine(folder: Path, shm: Path = Path("/dev/shm")) -> list[Finding]:
    """Cores, memory, and room on the disk and in shared memory."""
    found = [Finding(name="cores", status="ok", found=f"{cores()} of {os.cpu_count()} usable")]
    memory = free_memory()
    found.append(
        Finding(
            name="memory",
            status="ok" if memory >= 2 * _GIB else "low",
            found=f"{memory / _GIB:.1f} GiB free",
            remedy="" if memory >= 2 * _GIB else "pixels need replay memory: lower --replay.capacity",
        )
    )
    disk = shutil.disk_usage(folder).free
    found.append(
        Finding(
            name="disk",
            status="ok" if disk >= 5 * _GIB else "low",
            found=f"{disk / _GIB:.1f} GiB free in {folder.resolve()}",
            remedy="" if disk >= 5 * _GIB else "checkpoints hold the replay: write runs elsewhere with --run-dir",
        )
    )
    if shm.is_dir():
        room = shutil.disk_usage(shm).free
        small = room < 128 << 20
        remedy = "environment processes share pictures here: docker run --shm-size=1g, or --train.pool serial"
        found.append(
            Finding(
                name="shared memory",
                status="low" if small else "ok",
                found=f"{room / _GIB:.2f} GiB free in {shm}",
                remedy=remedy if small else "",
            )
        )
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of host memory that could be allocated now, container limits included."""
    import torch

    from worldmodel.replay.storage import free_memory as free

    return free(torch.device("cpu"))


def table(report: Report) -> Table:
    """The report for people."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_column(overflow="fold")
    for finding in report.findings:
        text = Text(finding.found)
        if finding.remedy:
            text.append(f"\n{finding.remedy}", style="cyan")
        rows.add_row(Text(finding.status, style=_STYLE[finding.status]), finding.name, text)
    rows.add_row("", "", "")
    for name, value in report.uses.items():
        rows.add_row(Text("uses", style="bold"), name, value)
    return rows


def _package(name: str, version: Callable[[str], str], absent: Status, remedy: str) -> Finding:
    try:
        return Finding(name=name, status="ok", found=version(name))
    except metadata.PackageNotFoundError:
        return Finding(name=name, status=absent, found="not installed", remedy=remedy)
