"""Returns: the Triton kernel and every gradient against the reference; the reference against a slow loop is in
tests/unit/test_returns.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldmodel.kernels import dispatch
from worldmodel.kernels.lambda_return import lambda_return


def inputs(rows: int, time: int, device: torch.device) -> list[Tensor]:
    """reward, continues, bootstrap, lam; terminals and truncations inside."""
    generator = torch.Generator().manual_seed(0)
    reward, bootstrap = (torch.randn(rows, time, generator=generator) for _ in range(2))
    continues = torch.rand(rows, time, generator=generator) * (torch.rand(rows, time, generator=generator) > 0.2)
    lam = 0.95 * (torch.rand(rows, time, generator=generator) > 0.2)
    return [x.to(device).requires_grad_() for x in (reward, continues, bootstrap, lam)]


def run(tensors: list[Tensor], lam: float | None, compute=lambda_return) -> list[Tensor]:
    leaves = tensors if lam is None else tensors[:3]
    out = compute(*tensors[:3], tensors[3] if lam is None else lam)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize(("rows", "time"), [(1, 1), (130, 3), (2, 40)])
@pytest.mark.parametrize("lam", [None, 0.95])
def test_triton_equals_the_reference(rows: int, time: int, lam: float | None, triton_kernels: torch.device) -> None:
    tensors = inputs(rows, time, triton_kernels)
    ours = run(tensors, lam)
    with dispatch.using("reference"):
        expected = run(tensors, lam)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences() -> None:
    tensors = [x.detach().double().requires_grad_() for x in inputs(2, 4, torch.device("cpu"))]
    assert torch.autograd.gradcheck(lambda_return, tensors)


def test_it_takes_what_is_not_contiguous(triton_kernels: torch.device) -> None:
    tensors = [x.detach().t().contiguous().t().requires_grad_() for x in inputs(4, 6, triton_kernels)]
    for a, b in zip(run(tensors, None), run(inputs(4, 6, triton_kernels), None), strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiler_traces_it_whole(triton_kernels: torch.device) -> None:
    compiled = torch.compile(lambda_return, fullgraph=True, backend="aot_eager")
    tensors = inputs(3, 4, triton_kernels)
    for lam in (None, 0.9):
        for a, b in zip(run(tensors, lam, compiled), run(tensors, lam), strict=True):
            torch.testing.assert_close(a, b)
