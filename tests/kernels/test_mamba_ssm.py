"""The comparison with mamba-ssm: told to it as it expects, refused where it cannot run, equal to ours on a GPU.

The numbers of the package's own blocks are in tests/parity. Its Triton kernels (2.3.2.post1) were run once through this
adapter in Triton's interpreter, on 2 x 35 steps with resets: outputs, last state and every gradient agreed to 2e-6.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.sequences import assert_same, is_first
from worldmodel.errors import UserError
from worldmodel.kernels import dispatch
from worldmodel.kernels.segments import segment_ids
from worldmodel.kernels.selective_scan import selective_scan
from worldmodel.kernels.selective_scan.reference import selective_scan as selective_reference
from worldmodel.kernels.ssd_scan import chunked, ssd_scan
from worldmodel.kernels.ssd_step import ssd_step
from worldmodel.kernels.ssd_step.reference import ssd_step as step_reference


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scan_inputs(batch: int = 2, length: int = 20, heads: int = 2, width: int = 8, size: int = 4) -> list[Tensor]:
    dt, A = random(batch, length, heads).abs(), -random(heads, seed=1).abs() - 0.5
    B, C = random(2, batch, length, 1, size, seed=2)
    return [
        random(batch, length, heads, width, seed=3), dt, A, B, C, random(heads, seed=4),
        random(batch, heads, width, size, seed=5),
    ]


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A package of that name whose functions have its signatures and ours inside; what was called."""
    called: list[str] = []

    def mamba_chunk_scan_combined(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor, initial_states: Tensor,
        seq_idx: Tensor, return_final_states: bool,
    ) -> tuple[Tensor, Tensor]:
        called.append("scan")
        assert seq_idx.dtype == torch.int32 and return_final_states and chunk_size == 64
        return chunked.ssd_scan(x, dt, A, B, C, D, seq_idx, initial_states, return_states=False)[:2]

    def selective_state_update(
        state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
    ) -> Tensor:
        called.append("step")
        tied = (A.stride(-1), A.stride(-2), dt.stride(-1), dt_bias.stride(-1), D.stride(-1))
        assert tied == (0,) * 5 and not dt_bias.any(), "one number a head"
        nowhere = torch.zeros(len(x), dtype=torch.bool)
        y, after = step_reference(x, dt[..., 0], A[:, 0, 0], B, C, D[:, 0], nowhere, state)
        state.copy_(after)
        return y

    def selective_scan_fn(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, return_last_state: bool
    ) -> tuple[Tensor, Tensor]:
        called.append("selective")
        assert return_last_state and u.is_contiguous() and delta.dtype == u.dtype
        x, dt, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
        y, states = selective_reference(
            x, dt, A, B, C, D, torch.zeros(x.shape[:2], dtype=torch.int32), torch.zeros(len(x), *A.shape)
        )
        return y.transpose(1, 2), states[:, -1]

    for name, function in (
        ("ops.triton.ssd_combined", mamba_chunk_scan_combined),
        ("ops.triton.selective_state_update", selective_state_update),
        ("ops.selective_scan_interface", selective_scan_fn),
    ):
        module = ModuleType(f"mamba_ssm.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(dispatch, "_mamba_ssm", lambda kernel, device: "mamba_ssm")
    with dispatch.using("mamba_ssm"):
        yield called


def test_a_scan_is_told_of_resets_and_the_state_before(theirs: list[str]) -> None:
    segments = segment_ids(is_first(2, 20))

    def scanned(choice: Any) -> Any:
        def call(*arguments: Tensor) -> tuple[Tensor, ...]:
            with dispatch.using(choice):
                out = ssd_scan(*arguments[:-1], segments=segments, state=arguments[-1], return_states=True)
            assert out.states is not None
            return out.y, out.final, out.states

        return call

    assert_same(scanned("mamba_ssm"), scanned("reference"), scan_inputs())
    assert theirs == ["scan"]


def test_a_step_leaves_the_state_it_began_with_alone(theirs: list[str]) -> None:
    x, dt, A, B, C, D, state = scan_inputs()
    arguments = (x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state)
    reset, before = torch.tensor([True, False]), state.clone()
    ours = ssd_step(*arguments, reset=reset)
    with dispatch.using("reference"):
        torch.testing.assert_close(ours, ssd_step(*arguments, reset=reset))
    assert torch.equal(state, before) and theirs == ["step"]
    ssd_step(*arguments[:-1], state.requires_grad_(), reset=reset)[0].sum().backward()
    assert state.grad is not None and theirs == ["step"], "it has no gradient"


def test_mamba_1_is_scanned_plainly_or_not_at_all(theirs: list[str]) -> None:
    x, dt, A = random(2, 9, 6), random(2, 9, 6, seed=1).abs(), -random(6, 4, seed=2).abs()
    B, C = random(2, 2, 9, 4, seed=3)
    ours = selective_scan(x, dt, A, B, C)
    with dispatch.using("reference"):
        torch.testing.assert_close(ours[:2], selective_scan(x, dt, A, B, C)[:2])
    for asked in ({"return_states": True}, {"segments": torch.zeros(2, 9).int()}, {"state": torch.zeros(2, 6, 4)}):
        with pytest.raises(UserError, match="knows neither resets nor a state before"):
            selective_scan(x, dt, A, B, C, **asked)
    assert theirs == ["selective"]


def test_what_it_does_not_have_runs_as_by_default() -> None:
    with dispatch.using("mamba_ssm"):
        assert dispatch.backend("twohot_loss", torch.zeros(1)) == "reference"


@pytest.mark.parametrize(
    ("has", "sentence"), [(False, "not installed: docs/kernels.md says"), (True, "ssd_scan got tensors on cpu")]
)
def test_where_it_cannot_run_a_sentence_says_so(has: bool, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_MAMBA_SSM", has)
    x, dt, A, B, C, D, state = scan_inputs()
    with dispatch.using("mamba_ssm"), pytest.raises(UserError, match=sentence):
        ssd_scan(x, dt, A, B, C, D, state=state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("ours", ["reference", "triton"])
@pytest.mark.parametrize("length", [1, 63, 64, 100, 257])
def test_scans_agree_with_mamba_ssm_on_a_gpu(length: int, ours: Any, dtype: torch.dtype, limit: float) -> None:
    pytest.importorskip("mamba_ssm")
    inputs = [tensor.cuda() for tensor in scan_inputs(4, length, 16, 64, 16)]
    inputs = [tensor.to(dtype) if index in (0, 3, 4) else tensor for index, tensor in enumerate(inputs)]
    segments = segment_ids(is_first(4, length)).cuda()

    def scanned(choice: Any) -> Any:
        def call(*arguments: Tensor) -> tuple[Tensor, ...]:
            with dispatch.using(choice):
                return ssd_scan(*arguments[:-1], segments=segments, state=arguments[-1])[:2]

        return call

    assert_same(scanned(ours), scanned("mamba_ssm"), inputs, limit)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_and_mamba_1_agree_with_mamba_ssm_on_a_gpu() -> None:
    pytest.importorskip("mamba_ssm")
    x, dt, A, B, C, D, state = (tensor.cuda() for tensor in scan_inputs(64, 1, 16, 64, 16))
    reset = torch.rand(64, device="cuda") < 0.3
    u, delta, decay = random(4, 64, 128).cuda(), random(4, 64, 128, seed=1).abs().cuda(), -random(128, 16).abs().cuda()
    b, c = random(2, 4, 64, 16, seed=2).cuda()
    out = {}
    for choice in ("mamba_ssm", "triton"):
        with dispatch.using(choice), torch.no_grad():  # type: ignore[arg-type]
            step = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state, reset=reset)
            out[choice] = (*step, *selective_scan(u, delta, decay, b, c)[:2])
    torch.testing.assert_close(out["mamba_ssm"], out["triton"], rtol=1e-3, atol=1e-4)
