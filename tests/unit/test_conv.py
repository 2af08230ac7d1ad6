"""Convolutions of the image networks: channels last, and upsampling that never upsamples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from worldmodel.nn.blocks import Conv, DownConv, TransposedConv, UpConv
from worldmodel.nn.encoders import StrideEncoderConfig


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_convolution_works_on_channels_last(kernel: int) -> None:
    torch.manual_seed(0)
    conv, x = Conv(3, 4, kernel), torch.randn(2, 6, 8, 3)
    expected = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=kernel // 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_an_upsampling_convolution_equals_upsampling_and_convolving_with_every_gradient(kernel: int) -> None:
    torch.manual_seed(kernel)
    conv = UpConv(3, 4, kernel).double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, 6, 3, dtype=torch.double, requires_grad=True)
    big = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    expected = F.conv2d(big, conv.weight, conv.bias, padding=kernel // 2).permute(0, 2, 3, 1)
    got = conv(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    inputs = [x, conv.weight, conv.bias]
    for a, b in zip(torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_one_pixel_is_painted_with_the_sums_of_the_taps_that_fall_on_it() -> None:
    conv = UpConv(1, 1, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    x = torch.zeros(1, 3, 3, 1)
    x[0, 1, 1] = 1.0
    # the pixel lies on rows and columns 2 and 3 of the large picture, and only the upper row of taps counts
    row = [0.0, 4.0, 6.0, 3.0, 1.0, 0.0]
    assert conv(x)[0, :, :, 0].tolist() == [[0.0] * 6, [0.0] * 6, [0.0] * 6, row, row, [0.0] * 6]


def test_an_upsampling_convolution_with_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd kernel, got 4"):
        UpConv(1, 1, 4)


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_strided_convolutions_halve_and_double_sizes(kernel: int) -> None:
    down, up = DownConv(3, 5, kernel, bias=False), TransposedConv(5, 3, kernel, stride=2)
    x = torch.randn(2, 8, 6, 3)
    small = down(x)
    assert small.shape == (2, 4, 3, 5) and up(small).shape == x.shape
    pad = (kernel - 1) // 2
    expected = F.conv_transpose2d(
        small.movedim(-1, 1), up.weight, up.bias, stride=2, padding=pad, output_padding=kernel % 2
    )
    torch.testing.assert_close(up(small), expected.movedim(1, -1))
    assert [name for name, _ in down.named_parameters()] == ["weight"]


def test_an_even_kernel_that_would_have_to_keep_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel must be odd where the first stage keeps the size, got 4"):
        StrideEncoderConfig(kernel=4)
