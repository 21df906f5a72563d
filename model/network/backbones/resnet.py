"""ResNet-50 and ResNet-101 (He et al. 2016) in the two forms that have published weights.

"Beta" is the reference's: a root of three 3x3 convolutions, the stride in the
LAST unit of a block, and the low-level feature taken before the residual add.
"Plain" is torchvision's: a 7x7 root and the stride in the first unit. Both
stride in the 3x3 convolution and know multi-grid (Chen et al. 2017).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbones.features import Backbone, Channels, Features
from model.network.layers import AtrousSchedule, ConvBN, FixedPadConv, Norm, same_padding

NORM = Norm(eps=1e-5, momentum=0.05)
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)  # of the 3x3 convolutions; a unit puts out four times as many
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (strided or atrous), 1x1 expand, added to a shortcut."""

    def __init__(self, inputs: int, width: int, *, stride: int, rate: int, first: bool) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = ConvBN(FixedPadConv(inputs, width, 1), NORM, nn.ReLU(inplace=True))
        self.conv2 = ConvBN(
            FixedPadConv(width, width, 3, stride=stride, rate=rate), NORM, nn.ReLU(inplace=True)
        )
        self.conv3 = ConvBN(FixedPadConv(width, outputs, 1), NORM)
        self.shortcut: nn.Module = (
            ConvBN(FixedPadConv(inputs, outputs, 1, stride=stride), NORM)
            if first
            else nn.MaxPool2d(1, stride)  # identity, subsampled where the unit strides
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> unit output, and its conv3 feature before add and ReLU."""
        residual = self.conv3(self.conv2(self.conv1(x)))
        return F.relu(self.shortcut(x) + residual), residual


class ResNet(Backbone):
    """ResNet of `depth` 50 or 101; `beta` chooses the reference's form, else torchvision's."""

    def __init__(
        self,
        depth: int = 101,
        *,
        beta: bool = True,
        output_stride: int = 16,
        multi_grid: tuple[int, ...] = (1, 1, 1),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        schedule = AtrousSchedule(output_stride)
        self.beta = beta
        self.root = self._root(schedule, in_channels)
        schedule.take(2)  # the max pooling in forward
        self.blocks = nn.ModuleList()
        inputs = 128 if beta else 64
        for block, (units, width) in enumerate(zip(UNITS[depth], WIDTHS, strict=True)):
            layers = nn.ModuleList()
            for unit in range(units):
                strides = unit == (units - 1 if beta else 0)
                # Beta blocks 1-3 stride at their end, plain blocks 2-4 at their start.
                has_stride = strides and (block < 3 if beta else block > 0)
                stride, rate = schedule.take(2 if has_stride else 1)
                grid = multi_grid[unit] if block == 3 else 1
                layers.append(
                    Bottleneck(inputs, width, stride=stride, rate=rate * grid, first=unit == 0)
                )
                inputs = width * EXPANSION
            self.blocks.append(layers)
        self.channels = Channels(conv2=256, conv3=512, high=inputs)

    def _root(self, schedule: AtrousSchedule, in_channels: int) -> nn.Module:
        stride, _ = schedule.take(2)
        if not self.beta:
            return ConvBN(
                FixedPadConv(in_channels, 64, 7, stride=stride), NORM, nn.ReLU(inplace=True)
            )
        return nn.Sequential(
            ConvBN(FixedPadConv(in_channels, 64, 3, stride=stride), NORM, nn.ReLU(inplace=True)),
            ConvBN(FixedPadConv(64, 64, 3), NORM, nn.ReLU(inplace=True)),
            ConvBN(FixedPadConv(64, 128, 3), NORM, nn.ReLU(inplace=True)),
        )

    def _pool(self, x: Tensor) -> Tensor:
        """3x3 max pooling of stride 2; the reference pads it as SAME."""
        if not self.beta:
            return F.max_pool2d(x, 3, 2, 1)
        top, bottom = same_padding(x.shape[-2], 3, 2)
        left, right = same_padding(x.shape[-1], 3, 2)
        # x is the output of a ReLU, so padding with zeros never changes a maximum.
        return F.max_pool2d(F.pad(x, (left, right, top, bottom)), 3, 2)

    def forward(self, x: Tensor) -> Features:
        """(N, C, H, W) -> maps with 256, 512 and 2048 channels."""
        x = self._pool(self.root(x))  # (N, 128 or 64, H/4, W/4)
        lows: list[Tensor] = []
        for block in self.blocks.children():
            units = list(block.children())
            # The last unit before the stride: in the beta form the final unit has the stride.
            last = units[-2 if self.beta else -1]
            for unit in units:
                x, residual = unit(x)
                if unit is last:
                    lows.append(residual if self.beta else x)
        return Features(lows[0], lows[1], x)  # high: (N, 2048, H/os, W/os)
