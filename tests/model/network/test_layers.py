"""Padding and strides, against TensorFlow's rules written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.network.backbones.mobilenet_v2 import expanded
from model.network.layers import AtrousSchedule, SamePadConv, resize, same_padding, scaled


@pytest.mark.parametrize("size", [5, 6, 7, 8, 33, 64])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_padding_puts_the_odd_pixel_at_the_end(size: int, kernel: int) -> None:
    """TensorFlow: total = max((ceil(n / s) - 1) s + k - n, 0), the smaller half first."""
    total = max((math.ceil(size / 2) - 1) * 2 + kernel - size, 0)
    assert same_padding(size, kernel, 2) == (total // 2, total - total // 2)


@pytest.mark.parametrize(("height", "width"), [(6, 7), (7, 6), (8, 8)])
def test_strided_same_convolution_samples_where_tensorflow_does(height: int, width: int) -> None:
    """A kernel that copies one tap shows which pixels it covers: on even sizes 1, 3, 5."""
    conv = SamePadConv(1, 1, 3, stride=2)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1
    image = torch.arange(height * width).float().view(1, 1, height, width)
    expected = image[..., 1 - height % 2 :: 2, 1 - width % 2 :: 2]
    assert torch.equal(conv(image), expected)


def test_schedule_turns_strides_into_rates_once_the_target_is_reached() -> None:
    """The layer that loses its stride keeps the current rate; later layers get the new one."""
    schedule = AtrousSchedule(8)
    taken = [schedule.take(stride) for stride in (2, 2, 1, 2, 1, 2, 1, 2, 1)]
    assert taken == [(2, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 4)]


def test_resize_keeps_the_corners() -> None:
    """Aligned corners: output pixel i samples input i (n - 1) / (m - 1)."""
    row = torch.tensor([[[[0.0, 10.0, 40.0]]]])
    resized = resize(row, (1, 5))[0, 0, 0]
    assert np.allclose(resized.numpy(), np.interp([0, 0.5, 1, 1.5, 2], [0, 1, 2], [0, 10, 40]))


@pytest.mark.parametrize(("scale", "side"), [(0.5, 257), (0.75, 385), (1.25, 641), (1.75, 897)])
def test_scaled_sides_are_the_references(scale: float, side: int) -> None:
    """The paper's six scales of 513."""
    assert scaled(513, scale) == side


@pytest.mark.parametrize(("inputs", "hidden"), [(16, 96), (8, 48), (6, 40), (11, 64)])
def test_expansion_rounds_to_eight(inputs: int, hidden: int) -> None:
    """slim's _make_divisible: the nearest multiple of 8, and never under 90 %."""
    assert expanded(inputs, 6) == hidden
    assert expanded(inputs, 1) == inputs
