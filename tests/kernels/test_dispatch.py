"""Who runs a kernel, and what happens when nobody can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldmodel.errors import UserError
from worldmodel.kernels import dispatch

HERE = torch.zeros(1)


class Elsewhere:
    """What a tensor on a GPU tells."""

    device, dtype = torch.device("cuda"), torch.float32


KERNELS = sorted(path.parent.name for path in Path(dispatch.__file__).parent.glob("*/reference.py"))


def test_a_cpu_takes_pytorch_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "DEFAULTS", {"toy": {"backend": "triton", "why": "a test"}})
    with dispatch.using("auto"):
        assert dispatch.backend("toy", HERE) == "reference"


@pytest.mark.parametrize("named", ["reference", "triton"])
def test_on_a_gpu_the_shipped_table_decides(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setattr(dispatch, "DEFAULTS", {"toy": {"backend": named, "why": "a test"}})
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    with dispatch.using("auto"):
        assert dispatch.backend("toy", Elsewhere()) == named  # type: ignore[arg-type]
    with dispatch.using("reference"):
        assert dispatch.backend("toy", Elsewhere()) == "reference"  # type: ignore[arg-type]


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "INTERPRETS", True)
    with dispatch.using("triton"):
        assert dispatch.backend("toy", HERE) == "triton"
        monkeypatch.setattr(dispatch, "INTERPRETS", False)
        with pytest.raises(UserError, match="TRITON_INTERPRET=1"):
            dispatch.backend("toy", HERE)


@pytest.mark.parametrize("choice", ["auto", "reference", "triton"])
def test_float16_on_a_cpu_is_refused(choice: dispatch.Choice) -> None:
    with dispatch.using(choice), pytest.raises(UserError, match="toy got float16 tensors on a CPU"):
        dispatch.backend("toy", HERE.half())


def test_missing_triton_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with dispatch.using("triton"), pytest.raises(UserError, match=r"worldmodel\[triton\]"):
        dispatch.backend("toy", HERE)


def test_a_misspelt_choice_is_refused() -> None:
    said = "auto, reference, triton or mamba_ssm, got 'tritn'"
    with pytest.raises(UserError, match=said), dispatch.using("tritn"):  # type: ignore[arg-type]
        pass


def test_a_block_ends_and_the_choice_before_is_back() -> None:
    with dispatch.using("reference"):
        with pytest.raises(ZeroDivisionError), dispatch.using("triton"):
            _ = 1 / 0
        assert dispatch.backend("toy", HERE) == "reference"


def test_what_runs_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "DEFAULTS", {"toy": {"backend": "triton", "why": ""}, "b": {"backend": "reference"}})
    with dispatch.using("auto"):
        assert dispatch.explain("cpu") == "PyTorch, on a CPU (WM_KERNELS=auto)"
        assert dispatch.explain("cuda").startswith("Triton for toy, measured to be faster; PyTorch for the rest")
        monkeypatch.setattr(dispatch, "DEFAULTS", {})
        assert "none of the Triton kernels was measured" in dispatch.explain("cuda")
    with dispatch.using("reference"):
        assert dispatch.explain("cuda") == "reference, as WM_KERNELS says"


def test_every_kernel_has_a_default_and_a_reason() -> None:
    assert sorted(dispatch.DEFAULTS) == KERNELS
    for entry in dispatch.DEFAULTS.values():
        assert set(entry) == {"backend", "why"} and entry["backend"] in ("reference", "triton") and entry["why"]


def test_kernels_import_without_triton() -> None:
    modules = ", ".join(f"worldmodel.kernels.{kernel}" for kernel in KERNELS)
    code = f"import sys; sys.modules['triton'] = None; import {modules}; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


def test_the_first_configuration_is_taken_where_nothing_can_be_timed() -> None:
    triton = pytest.importorskip("triton")
    if not dispatch.INTERPRETS:
        pytest.skip("there is a GPU to time on")
    configs = [triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32})]

    def kernel(x, BLOCK):
        pass

    tuned = dispatch.autotune(configs, key=[])(triton.jit(kernel))
    assert [config.kwargs["BLOCK"] for config in tuned.configs] == [16]
