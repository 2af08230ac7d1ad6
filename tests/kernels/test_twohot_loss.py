"""Two-hot cross-entropy: Triton against the reference; the reference against a loop from the definition is in
tests/unit/test_distributions.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldmodel.distributions import TwoHot, symexp_bins
from worldmodel.kernels import dispatch
from worldmodel.kernels.twohot_loss import twohot_loss


def inputs(rows: int, count: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    bins = symexp_bins(count)
    logits = 3 * torch.randn(rows, count, generator=generator)
    target = 50 * torch.randn(rows, generator=generator)
    edges = torch.tensor([1e12, -1e12, 0.0, float(bins[1]), float(bins[-1])])[:rows]
    target[: len(edges)] = edges
    mask = torch.rand(rows, generator=generator) < 0.7
    return logits.to(device, dtype).requires_grad_(), bins.to(device), target.to(device), mask.to(device)


def run(logits: Tensor, bins: Tensor, target: Tensor, mask: Tensor | None, compute=twohot_loss) -> list[Tensor]:
    loss = compute(logits, bins, target, mask)
    weight = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss.device)
    return [loss, *torch.autograd.grad((loss * weight).sum(), logits)]


@pytest.mark.parametrize(("rows", "count"), [(1, 3), (9, 255), (6, 33), (4, 63)])
@pytest.mark.parametrize("masked", [False, True])
def test_triton_equals_the_reference(rows: int, count: int, masked: bool, triton_kernels: torch.device) -> None:
    logits, bins, target, mask = inputs(rows, count, triton_kernels)
    ours = run(logits, bins, target, mask if masked else None)
    with dispatch.using("reference"):
        expected = run(logits, bins, target, mask if masked else None)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", ["reference", "triton"])
def test_a_masked_row_gives_no_loss_and_no_gradient(choice: str, triton_kernels: torch.device) -> None:
    logits, bins, target, _ = inputs(4, 33, triton_kernels)
    mask = torch.tensor([True, False, True, False], device=triton_kernels)
    with dispatch.using(choice):  # type: ignore[arg-type]
        loss, gradient = run(logits, bins, target, mask)
    assert loss[~mask].abs().max() == gradient[~mask].abs().max() == 0
    assert (loss[mask] > 0).all() and gradient[mask].abs().sum() > 0


def test_the_engine_takes_the_kernel_for_any_leading_axes(triton_kernels: torch.device) -> None:
    logits, bins, target, _ = inputs(6, 33, triton_kernels)
    loss = TwoHot(logits.view(2, 3, 33), bins).loss(target.view(2, 3))
    with dispatch.using("reference"):
        torch.testing.assert_close(loss, TwoHot(logits.view(2, 3, 33), bins).loss(target.view(2, 3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_takes_bfloat16(triton_kernels: torch.device) -> None:
    tensors = inputs(300, 255, triton_kernels, torch.bfloat16)
    ours = run(*tensors)
    with dispatch.using("reference"):
        expected = run(*tensors)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_a_compiler_traces_it_whole(triton_kernels: torch.device) -> None:
    compiled = torch.compile(twohot_loss, fullgraph=True, backend="aot_eager")
    tensors = inputs(3, 33, triton_kernels)
    for a, b in zip(run(*tensors, compiled), run(*tensors), strict=True):
        torch.testing.assert_close(a, b)
