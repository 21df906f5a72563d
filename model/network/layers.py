"""Convolutions with batch norm, and the bookkeeping of strides and atrous rates.

Padding follows the official TensorFlow implementation (research/deeplab of
tensorflow/models): an off-by-one would shift every feature map of an even-sized
image. `FixedPadConv` pads (k-1)/2 on both sides whatever the input size.
`SamePadConv` pads like TensorFlow's "SAME": on even inputs one pixel less at
the top left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Norm(NamedTuple):
    """Batch-norm constants, as PyTorch counts momentum (1 - TensorFlow's decay)."""

    eps: float
    momentum: float

    def layer(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)


class AtrousSchedule:
    """Turns nominal strides into (stride, rate) once the target output stride is reached.

    A layer that would exceed the target keeps stride 1 and runs at the current
    rate. The rate of the layers after it is multiplied by the stride it gave up,
    so that they keep the field of view their weights were trained for (Chen et
    al. 2017, section 3.1).
    """

    def __init__(self, output_stride: int) -> None:
        self.output_stride = output_stride
        self.stride = 1
        self.rate = 1

    def take(self, stride: int) -> tuple[int, int]:
        """Return the (stride, rate) of the next layer, whose nominal stride is `stride`."""
        if self.stride < self.output_stride:
            self.stride *= stride
            return stride, 1
        rate = self.rate
        self.rate *= stride
        return 1, rate


class FixedPadConv(nn.Conv2d):
    """A bias-free convolution padded by `rate * (kernel - 1) / 2` on every side."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        rate: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=rate * (kernel - 1) // 2,
            dilation=rate,
            groups=groups,
            bias=False,
        )


class SamePadConv(FixedPadConv):
    """A bias-free convolution padded like TensorFlow's SAME: an odd pixel goes bottom right."""

    odd = False  # whether H and W are always odd

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        if self.stride[0] == 1 or self.odd:  # SAME is symmetric here
            return super().forward(x)
        top, bottom = same_padding(x.shape[-2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(x.shape[-1], self.kernel_size[1], self.stride[1])
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after `size` pixels under TensorFlow's SAME, for stride 1 or 2."""
    outputs = (size + stride - 1) // stride
    # Never negative for kernel >= stride, so no max(): it would not trace symbolically.
    total = (outputs - 1) * stride + kernel - size
    return total // 2, total - total // 2


class ConvBN(nn.Module):
    """Convolution, batch norm and, where given, an activation."""

    def __init__(self, conv: nn.Conv2d, norm: Norm, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.bn: nn.Module = norm.layer(conv.out_channels)
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return self.activation(self.bn(self.conv(x)))  # type: ignore[no-any-return]


def batch_norms(net: nn.Module) -> Iterator[_BatchNorm]:
    """All batch-norm layers of a network, synchronised ones too."""
    return (module for module in net.modules() if isinstance(module, _BatchNorm))


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Resize bilinearly: (N, C, H, W) -> (N, C, *size).

    `align_corners=True` is what the reference does everywhere.
    """
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def scaled(size: int, scale: float) -> int:
    """Side of a map resized with aligned corners: (n - 1) * scale + 1, rounded down."""
    if isinstance(size, int):
        return int((size - 1) * scale + 1)  # in floats, like the reference
    numerator, denominator = float(scale).as_integer_ratio()  # a symbolic size, while exporting
    return (size - 1) * numerator // denominator + 1
