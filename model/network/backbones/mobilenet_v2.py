"""MobileNetV2 (Sandler et al. 2018) as the reference ships it: seventeen blocks, no head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from model.network.backbones.features import Backbone, Channels, Features, residual_features
from model.network.backbones.inverted_residual import InvertedResidual
from model.network.layers import AtrousSchedule, ConvBN, Norm, SamePadConv

NORM = Norm(eps=1e-3, momentum=0.003)


class Stage(NamedTuple):
    """A row of the paper's table 2; the stride belongs to the first block."""

    repeats: int
    stride: int
    expansion: int
    outputs: int


STAGES = (
    Stage(1, 1, 1, 16),
    Stage(2, 2, 6, 24),
    Stage(3, 2, 6, 32),
    Stage(4, 2, 6, 64),
    Stage(3, 1, 6, 96),
    Stage(3, 2, 6, 160),
    Stage(1, 1, 6, 320),
)
STEM = 32
CONV2_BLOCK = 2  # expanded_conv_2, the last block at stride 4
CONV3_BLOCK = 5  # expanded_conv_5, the last block at stride 8


def scaled(channels: int, depth_multiplier: float) -> int:
    """Channels at a depth multiplier, rounded to the nearest integer like the reference."""
    return max(1, int(channels * depth_multiplier + 0.5))


def expanded(inputs: int, expansion: int) -> int:
    """Channels between the two 1x1 convolutions of a block: a multiple of 8, as in slim."""
    if expansion == 1:
        return inputs
    value = inputs * expansion
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


class MobileNetV2(Backbone):
    """MobileNetV2 without its classifier, at any output stride."""

    def __init__(
        self, depth_multiplier: float = 1.0, *, output_stride: int = 16, in_channels: int = 3
    ) -> None:
        super().__init__()
        schedule = AtrousSchedule(output_stride)
        stride, _ = schedule.take(2)
        inputs = scaled(STEM, depth_multiplier)
        self.stem = ConvBN(
            SamePadConv(in_channels, inputs, 3, stride=stride), NORM, nn.ReLU6(inplace=True)
        )
        self.blocks = nn.ModuleList()
        widths: list[int] = []
        for stage in STAGES:
            outputs = scaled(stage.outputs, depth_multiplier)
            for index in range(stage.repeats):
                stride, rate = schedule.take(stage.stride if index == 0 else 1)
                widths.append(expanded(inputs, stage.expansion))
                self.blocks.append(
                    InvertedResidual(
                        inputs,
                        outputs,
                        hidden=widths[-1],
                        kernel=3,
                        stride=stride,
                        rate=rate,
                        norm=NORM,
                    )
                )
                inputs = outputs
        self.channels = Channels(conv2=widths[CONV2_BLOCK], conv3=widths[CONV3_BLOCK], high=inputs)

    def forward(self, x: Tensor) -> Features:
        """(N, C, H, W) -> maps with 144, 192 and 320 channels (at multiplier 1)."""
        x = self.stem(x)  # (N, 32, H/2, W/2)
        # conv2, conv3, high: (N, 144, H/4, W/4), (N, 192, H/8, W/8), (N, 320, H/os, W/os)
        return residual_features(self.blocks, x, conv2=CONV2_BLOCK, conv3=CONV3_BLOCK)
