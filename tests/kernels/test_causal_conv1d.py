"""The short convolution: Triton, a loop over steps, and separate episodes all say the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.sequences import Outputs, assert_same, is_first
from worldmodel.kernels.causal_conv1d import causal_conv1d, causal_conv1d_step, reference
from worldmodel.kernels.segments import goes_on, segment_ids


def make(
    batch: int, length: int, channels: int = 5, width: int = 4, dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> list[Tensor]:
    """x, weight, bias, state."""
    generator = torch.Generator().manual_seed(length)
    shapes = ((batch, length, channels), (channels, width), (channels,), (batch, width - 1, channels))
    x, weight, bias, state = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return [x.to(dtype), weight, bias, state.to(dtype)]


def looped(segments: Tensor, silu: bool):
    """One step at a time, by the definition."""
    reset = ~goes_on(segments)

    def call(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Outputs:
        ys = []
        for t in range(x.shape[1]):
            window = torch.cat([state.masked_fill(reset[:, t, None, None], 0), x[:, t, None]], 1)
            z = (window * weight.T).sum(1) + bias
            ys.append(F.silu(z) if silu else z)
            state = window[:, 1:]
        return torch.stack(ys, 1), state

    return call


def convolved(segments: Tensor, silu: bool):
    return lambda x, weight, bias, state: causal_conv1d(x, weight, bias, segments=segments, state=state, silu=silu)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 100])
def test_the_convolution_is_the_loop_over_steps(length: int, silu: bool) -> None:
    segments = segment_ids(is_first(2, length))
    assert_same(convolved(segments, silu), looped(segments, silu), make(2, length))


@pytest.mark.parametrize(("length", "silu"), [(1, True), (2, True), (3, False), (63, True), (100, False)])
def test_triton_is_the_loop_over_steps(triton_kernels: torch.device, length: int, silu: bool) -> None:
    segments = segment_ids(is_first(2, length)).to(triton_kernels)
    inputs = make(2, length, device=triton_kernels)
    assert_same(convolved(segments, silu), looped(segments, silu), inputs)


def test_triton_reads_a_slice_of_a_projection_in_place(triton_kernels: torch.device) -> None:
    segments = segment_ids(is_first(2, 20)).to(triton_kernels)
    x, *rest = make(2, 20, device=triton_kernels)
    wide = torch.cat([torch.full_like(x, torch.nan), x, torch.full_like(x, torch.nan)], 2)
    call, want = convolved(segments, True), looped(segments, True)

    def sliced(wide: Tensor, *rest: Tensor) -> Outputs:
        return call(wide[:, :, 5:10], *rest)

    def wanted(wide: Tensor, *rest: Tensor) -> Outputs:
        return want(wide[:, :, 5:10], *rest)

    assert_same(sliced, wanted, [wide, *rest])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_sequence_of_one_is_a_step(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "triton":
        request.getfixturevalue("triton_kernels")
    x, weight, bias, state = make(3, 1)
    reset = torch.tensor([True, False, True])
    y, after = causal_conv1d_step(x[:, 0], weight, bias, state, reset=reset)
    window = torch.cat([state * ~reset[:, None, None], x], 1)
    torch.testing.assert_close(y, F.silu((window * weight.T).sum(1) + bias))
    torch.testing.assert_close(after, window[:, 1:])


def test_two_halves_are_the_whole() -> None:
    x, weight, bias, state = make(2, 30)
    first = is_first(2, 30)
    whole, final = causal_conv1d(x, weight, bias, segments=segment_ids(first), state=state)
    left, middle = causal_conv1d(x[:, :17], weight, bias, segments=segment_ids(first[:, :17]), state=state)
    right, end = causal_conv1d(x[:, 17:], weight, bias, segments=segment_ids(first[:, 17:]), state=middle)
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    torch.testing.assert_close(end, final)


def test_gradients_of_the_reference_are_exact() -> None:
    segments = segment_ids(is_first(2, 6))
    inputs = [tensor.double().requires_grad_() for tensor in make(2, 6, channels=2)]
    assert torch.autograd.gradcheck(
        lambda x, w, b, s: reference.causal_conv1d(x, w, b, segments, s, silu=True), inputs
    )


def test_a_wrong_shape_says_what_it_must_be() -> None:
    x, weight, bias, _ = make(2, 6)
    with pytest.raises(ValueError, match=r"state must be \(2, 3, 5\) beside x \(2, 6, 5\), got \(2, 4, 5\)"):
        causal_conv1d(x, weight, bias, state=torch.zeros(2, 4, 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("length", [64, 1000])
def test_large_shapes_on_a_gpu(triton_kernels: torch.device, length: int, dtype: torch.dtype, limit: float) -> None:
    segments = segment_ids(is_first(16, length)).to(triton_kernels)
    inputs = make(16, length, 1056, dtype=dtype, device=triton_kernels)
    want = lambda x, w, b, s: reference.causal_conv1d(x, w, b, segments, s, silu=True)  # noqa: E731
    assert_same(convolved(segments, True), want, inputs, limit)
