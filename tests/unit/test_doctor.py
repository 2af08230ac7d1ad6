"""What doctor finds, and what it says to do."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worldmodel import cli, doctor
from worldmodel.doctor import Finding, Report
from worldmodel.envs.gl import GLChoice
from worldmodel.errors import EnvError


def absent(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def healthy() -> dict[str, Finding]:
    names = {"torch": "2.13.0", "CUDA": "12.8, 1 x H200, 141 GiB", "OpenGL": "egl, NVIDIA H200"}
    return {name: Finding(name=name, status="ok", found=found) for name, found in names.items()}


def test_old_python_is_broken() -> None:
    assert doctor.check_python((3, 10, 4)).status == "broken"
    assert doctor.check_python((3, 11, 0)).status == "ok"


def test_a_missing_requirement_is_broken_and_a_missing_extra_is_not() -> None:
    assert doctor.check_required("gymnasium", absent).status == "broken"
    assert "pip install gymnasium" in doctor.check_required("gymnasium", absent).remedy
    assert doctor.check_extra("wandb", absent).status == "missing"
    assert "wandb" in doctor.check_extra("wandb", absent).remedy
    assert doctor.check_triton(absent).status == "missing"
    assert doctor.check_required("numpy").status == "ok"


def test_mujoco_4_is_broken() -> None:
    assert doctor.check_mujoco(lambda name: "3.17.0").status == "ok"
    finding = doctor.check_mujoco(lambda name: "4.0.0")
    assert finding.status == "broken" and "pip install 'mujoco>=3.3,<4'" in finding.remedy


def test_missing_gl_gives_the_apt_line_and_does_not_stop_training() -> None:
    def nothing_works() -> Any:
        raise EnvError("no OpenGL to draw with (egl: no display); run `apt-get install -y libegl1`, or use ray")

    finding = doctor.check_gl(nothing_works)
    assert finding.status == "missing"
    assert finding.found == "no OpenGL to draw with (egl: no display)"
    assert finding.remedy.startswith("run `apt-get install -y libegl1`")
    assert Report(findings=[finding], uses={}).is_healthy


def test_the_apt_line_is_that_of_the_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    from worldmodel.envs import gl

    monkeypatch.setattr(gl, "candidates", lambda: ["egl"])
    finding = doctor.check_gl(lambda: gl.choose_backend(lambda backend: (False, "no library")))
    assert "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri" in finding.remedy


def test_software_gl_is_called_slow() -> None:
    software = doctor.check_gl(lambda: GLChoice(backend="egl", device="llvmpipe (LLVM 15)"))
    assert software.status == "ok" and "gl-fast and ray are faster" in software.found
    assert "faster" not in doctor.check_gl(lambda: GLChoice(backend="egl", device="NVIDIA H200")).found


def test_what_will_be_used_follows_from_the_findings() -> None:
    found = healthy()
    assert doctor.uses(found)["device"] == "cuda" and doctor.uses(found)["DMC pixels"].startswith("gl (egl)")
    worse = {name: replace(finding, status="missing") for name, finding in found.items()}
    assert "WM_KERNELS" in doctor.uses(found)["kernels"] and doctor.uses(worse)["kernels"] == "unknown without torch"
    assert doctor.uses(worse)["device"] == "cpu" and doctor.uses(worse)["DMC pixels"].startswith("ray")


def test_little_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    monkeypatch.setattr(doctor, "free_memory", lambda: 1 << 30)
    found = {finding.name: finding for finding in doctor.check_machine(tmp_path, shm=tmp_path)}
    assert {name for name, finding in found.items() if finding.status == "low"} == {"memory", "disk", "shared memory"}
    assert "--shm-size" in found["shared memory"].remedy


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_gl", lambda: healthy()["OpenGL"])
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    names = {finding["name"] for finding in report["findings"]}
    assert {"torch", "CUDA", "triton", "mujoco", "OpenGL", "Atari ROMs", "cores", "memory", "disk", "wandb"} <= names
    assert report["uses"]["device"] in ("cpu", "cuda")


def test_exit_code_1_where_training_cannot_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding(name="mujoco", status="broken", found="4.0.0", remedy="pip install 'mujoco<4'")
    monkeypatch.setattr(doctor, "examine", lambda: Report(findings=[finding], uses={"device": "cpu"}))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "broken" in out and "4.0.0" in out and "pip install 'mujoco<4'" in out
