"""Mamba-1's scan and step: Triton, the loop over steps, and separate episodes all say the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.sequences import Outputs, assert_same, is_first
from worldmodel.kernels.segments import segment_ids
from worldmodel.kernels.selective_scan import reference, selective_scan
from worldmodel.kernels.selective_step import selective_step


def make(
    batch: int, length: int, channels: int = 5, size: int = 3,
    dtype: torch.dtype = torch.float32, device: torch.device | None = None,
) -> list[Tensor]:
    """x, dt, A, B, C, D, state."""
    generator = torch.Generator().manual_seed(length)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    inputs = [
        normal(batch, length, channels).to(dtype),
        torch.nn.functional.softplus(normal(batch, length, channels) - 2),
        -torch.exp(normal(channels, size)),
        normal(batch, length, size).to(dtype),
        normal(batch, length, size).to(dtype),
        normal(channels),
        normal(batch, channels, size),
    ]
    return [tensor.to(device) for tensor in inputs]


def looped(segments: Tensor, return_states: bool):
    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> Outputs:
        y, states = reference.selective_scan(x, dt, A, B, C, D, segments, state)
        return (y, states[:, -1], states) if return_states else (y, states[:, -1])

    return call


def scanned(segments: Tensor, return_states: bool):
    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> Outputs:
        out = selective_scan(x, dt, A, B, C, D, segments=segments, state=state, return_states=return_states)
        assert (out.states is None) is not return_states
        return (out.y, out.final) if out.states is None else (out.y, out.final, out.states)

    return call


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 100, 257])
def test_chunks_are_the_loop_over_steps(length: int) -> None:
    segments = segment_ids(is_first(2, length))
    assert_same(scanned(segments, True), looped(segments, True), make(2, length))


@pytest.mark.parametrize(("length", "return_states"), [(1, False), (16, False), (17, False), (1, True), (17, True)])
def test_triton_is_the_loop_over_steps(triton_kernels: torch.device, length: int, return_states: bool) -> None:
    segments = segment_ids(is_first(2, length)).to(triton_kernels)
    inputs = make(2, length, device=triton_kernels)
    assert_same(scanned(segments, return_states), looped(segments, return_states), inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "return_states"), [(63, True), (100, False)])
def test_triton_is_the_loop_over_many_steps(triton_kernels: torch.device, length: int, return_states: bool) -> None:
    segments = segment_ids(is_first(2, length)).to(triton_kernels)
    inputs = make(2, length, device=triton_kernels)
    assert_same(scanned(segments, return_states), looped(segments, return_states), inputs)


def test_channels_of_several_programs_add_up(triton_kernels: torch.device) -> None:
    """A state of 128 leaves 8 channels to a program; 12 channels need two."""
    segments = segment_ids(is_first(2, 3)).to(triton_kernels)
    inputs = make(2, 3, channels=12, size=128, device=triton_kernels)
    assert_same(scanned(segments, False), looped(segments, False), inputs)


def test_a_batch_with_resets_is_the_separate_episodes() -> None:
    x, dt, A, B, C, D, state = make(1, 37)
    first = torch.zeros(1, 37, dtype=torch.bool)
    first[0, [9, 16, 36]] = True
    whole = selective_scan(x, dt, A, B, C, D, segments=segment_ids(first), state=state)
    for start, stop in ((0, 9), (9, 16), (16, 36), (36, 37)):
        part = slice(start, stop)
        alone = selective_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, state=None if start else state)
        torch.testing.assert_close(whole.y[:, part], alone.y)
    torch.testing.assert_close(whole.final, alone.final)


def test_a_step_of_triton_is_the_formula(triton_kernels: torch.device) -> None:
    reset = torch.tensor([True, False, False], device=triton_kernels)
    x, dt, A, B, C, D, state = make(3, 1, device=triton_kernels)
    assert_same(
        lambda x, dt, A, B, C, D, h: selective_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, h, reset=reset),
        lambda x, dt, A, B, C, D, h: tuple(
            out[:, 0] for out in reference.selective_scan(x, dt, A, B, C, D, reset[:, None].int(), h)
        ),
        [x, dt, A, B, C, D, state],
    )


def test_one_step_by_hand() -> None:
    """h = e^(-0.5 ln 4) 4 + 0.5 * 2 * 3 = 2 + 3 = 5; y = 5 * 2 + 10 * 2 = 30; after a reset h = 3, y = 26."""
    one = torch.ones(2, 1)
    reset = torch.tensor([False, True])
    y, state = selective_step(
        2 * one, 0.5 * one, -torch.tensor([[4.0]]).log(), 3 * one, 2 * one, torch.tensor([10.0]), 4 * one[:, None],
        reset=reset,
    )
    torch.testing.assert_close((y, state), (torch.tensor([[30.0], [26.0]]), torch.tensor([[[5.0]], [[3.0]]])))


def test_gradients_of_the_reference_are_exact() -> None:
    segments = segment_ids(is_first(2, 5))
    inputs = [tensor.double().requires_grad_() for tensor in make(2, 5, 2, 2)]
    assert torch.autograd.gradcheck(looped(segments, True), inputs)


def test_a_compiler_sees_one_node(triton_kernels: torch.device) -> None:
    from worldmodel.kernels.selective_scan.triton import selective_scan_op

    x, dt, A, B, C, D, state = [tensor.requires_grad_() for tensor in make(2, 2, device=triton_kernels)]
    segments = segment_ids(is_first(2, 2)).to(triton_kernels)
    for return_states in (False, True):
        torch.library.opcheck(
            selective_scan_op, (x, dt, A, B, C, D, segments, state, return_states),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(("length", "size"), [(1, 16), (63, 16), (64, 128), (1000, 16)])
def test_large_shapes_on_a_gpu(
    triton_kernels: torch.device, length: int, size: int, dtype: torch.dtype, limit: float, return_states: bool
) -> None:
    inputs = make(4, length, 1000, size, dtype, triton_kernels)
    segments = segment_ids(is_first(4, length)).to(triton_kernels)
    assert_same(scanned(segments, return_states), looped(segments, return_states), inputs, limit)
