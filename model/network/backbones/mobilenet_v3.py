"""MobileNetV3-Large (Howard et al. 2019, table 1) as torchvision builds it for DeepLabv3.

It ends with the 1x1 convolution to 960 channels. Convolutions pad by half of their kernel on both
sides. The published DeepLabv3 was trained at output stride 16, with DILATED_BLOCK dilated.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from model.network.backbones.features import Backbone, Channels, Features, residual_features
from model.network.layers import AtrousSchedule, ConvBN, FixedPadConv, Norm

NORM = Norm(eps=1e-3, momentum=0.01)


class Row(NamedTuple):
    """A row of the paper's table 1."""

    kernel: int
    hidden: int
    outputs: int
    excited: bool  # squeeze-and-excite
    hard_swish: bool  # else ReLU
    stride: int


ROWS = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
STEM = 16
LAST = 960
CONV2_BLOCK = 2  # the last block at stride 4
CONV3_BLOCK = 5  # the last block at stride 8
DILATED_BLOCK = 12  # dilated itself where it gives up its stride, unlike in other backbones


def squeezed(hidden: int) -> int:
    """Channels inside of a squeeze-and-excite: a quarter, as a multiple of 8."""
    quarter = hidden // 4
    rounded = max(8, (quarter + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * quarter else rounded


class SqueezeExcite(nn.Module):
    """Scale each channel by what the means of all channels say (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed(channels), 1)
        self.expand = nn.Conv2d(squeezed(channels), channels, 1)
        self.relu, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        # Always in float32: the sum over a large map overflows in half precision.
        mean = x.float().mean((2, 3), keepdim=True).to(x.dtype)
        return x * self.gate(self.expand(self.relu(self.reduce(mean))))  # type: ignore[no-any-return]


class ExcitedResidual(nn.Module):
    """MobileNetV2's block with squeeze-and-excite after the depthwise convolution."""

    def __init__(self, inputs: int, row: Row, *, stride: int, rate: int) -> None:
        super().__init__()
        hidden = row.hidden
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        self.expand: nn.Module = (
            ConvBN(FixedPadConv(inputs, hidden, 1), NORM, activation(inplace=True))
            if hidden != inputs
            else nn.Identity()
        )
        depthwise = FixedPadConv(
            hidden, hidden, row.kernel, stride=stride, rate=rate, groups=hidden
        )
        self.depthwise = ConvBN(depthwise, NORM, activation(inplace=True))
        self.excite = SqueezeExcite(hidden) if row.excited else nn.Identity()
        self.project = ConvBN(FixedPadConv(hidden, row.outputs, 1), NORM)
        self.has_shortcut = row.stride == 1 and inputs == row.outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> block output, twice: it is also the low-level feature."""
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        y = x + y if self.has_shortcut else y
        return y, y


class MobileNetV3Large(Backbone):
    """MobileNetV3-Large without its classifier, at any output stride."""

    def __init__(self, *, output_stride: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        schedule = AtrousSchedule(output_stride)
        stride, _ = schedule.take(2)
        stem = FixedPadConv(in_channels, STEM, 3, stride=stride)
        self.stem = ConvBN(stem, NORM, nn.Hardswish(inplace=True))
        self.blocks = nn.ModuleList()
        inputs = STEM
        for row in ROWS:
            stride, rate = schedule.take(row.stride)
            rate = schedule.rate if row is ROWS[DILATED_BLOCK] else rate
            block = ExcitedResidual(inputs, row, stride=stride, rate=rate)
            self.blocks.append(block)
            inputs = row.outputs
        self.last = ConvBN(FixedPadConv(inputs, LAST, 1), NORM, nn.Hardswish(inplace=True))
        self.channels = Channels(
            conv2=ROWS[CONV2_BLOCK].outputs, conv3=ROWS[CONV3_BLOCK].outputs, high=LAST
        )

    def forward(self, x: Tensor) -> Features:
        """(N, C, H, W) -> maps with 24, 40 and 960 channels."""
        found = residual_features(self.blocks, self.stem(x), conv2=CONV2_BLOCK, conv3=CONV3_BLOCK)
        return found._replace(high=self.last(found.high))  # (N, 960, H/os, W/os)
