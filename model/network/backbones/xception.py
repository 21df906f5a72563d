"""Modified aligned Xception (section 3.2 and figure 4 of the paper), 65 and 71 layers deep.

Against the original Xception: deeper, max pooling replaced by strided depthwise
convolutions, and more after every 3x3 depthwise convolution (`after_depthwise`):

- `batch_norm`: the published networks. An activation precedes the depthwise convolution
  and none follows it, except in the last module, where ReLU follows both halves.
- `batch_norm+relu`: the paper's words. ReLU follows both halves in every module, which the
  reference calls `activation_fn_in_separable_conv`.
- `nothing`: the original Xception's separable convolution, to measure the effect of the change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbones.features import Backbone, Channels, Features, residual_features
from model.network.config import AfterDepthwise
from model.network.layers import AtrousSchedule, ConvBN, FixedPadConv, Norm

NORM = Norm(eps=1e-3, momentum=0.0003)


class Module(NamedTuple):
    """One Xception module: three separable convolutions, the stride in the third."""

    widths: tuple[int, int, int]
    stride: int = 1
    shortcut: str = "conv"  # conv, sum or none


def _entry(width: int, stride: int = 2) -> Module:
    return Module((width, width, width), stride)


MIDDLE = (Module((728, 728, 728), shortcut="sum"),) * 16
EXIT = (Module((728, 1024, 1024), 2), Module((1536, 1536, 2048), shortcut="none"))
MODULES = {
    65: (_entry(128), _entry(256), _entry(728), *MIDDLE, *EXIT),
    71: (_entry(128), _entry(256, 1), _entry(256), _entry(728, 1), _entry(728), *MIDDLE, *EXIT),
}
# The modules that end at stride 8 and 16: their second convolution is the last before striding.
CONV2_MODULE = {65: 1, 71: 2}
CONV3_MODULE = {65: 2, 71: 4}


class SeparableConv(nn.Module):
    """Depthwise 3x3 + BN, pointwise 1x1 + BN; ReLU before the pair, or after both halves.

    Without `norm` nothing at all follows the depthwise half.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        rate: int,
        activation_after: bool,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.activation_before = not activation_after
        depthwise = FixedPadConv(inputs, inputs, 3, stride=stride, rate=rate, groups=inputs)
        after = nn.ReLU(inplace=True) if activation_after else None
        self.depthwise: nn.Module = ConvBN(depthwise, NORM, after) if norm else depthwise
        self.pointwise = ConvBN(FixedPadConv(inputs, outputs, 1), NORM, after)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        if self.activation_before:
            x = F.relu(x)
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


class XceptionModule(nn.Module):
    """Three separable convolutions with a shortcut."""

    def __init__(
        self,
        inputs: int,
        module: Module,
        *,
        rates: tuple[int, int, int],
        stride: int,
        after_depthwise: AfterDepthwise,
    ) -> None:
        super().__init__()
        widths = (inputs, *module.widths)
        self.convs = nn.ModuleList(
            SeparableConv(
                widths[index],
                widths[index + 1],
                stride=stride if index == 2 else 1,
                rate=rates[index],
                activation_after=module.shortcut == "none" or after_depthwise == "batch_norm+relu",
                norm=after_depthwise != "nothing",
            )
            for index in range(3)
        )
        self.shortcut = (
            ConvBN(FixedPadConv(inputs, widths[-1], 1, stride=stride), NORM)
            if module.shortcut == "conv"
            else None
        )
        self.adds_input = module.shortcut == "sum"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> module output, and the feature of its second separable convolution."""
        second = self.convs[1](self.convs[0](x))
        y = self.convs[2](second)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        elif self.adds_input:
            y = y + x
        return y, second


class Xception(Backbone):
    """Aligned Xception of `depth` 65 or 71 without its classifier."""

    def __init__(
        self,
        depth: int = 65,
        *,
        output_stride: int = 16,
        multi_grid: tuple[int, ...] = (1, 1, 1),
        after_depthwise: AfterDepthwise = "batch_norm",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        schedule = AtrousSchedule(output_stride)
        stride, _ = schedule.take(2)
        self.root = nn.Sequential(
            ConvBN(FixedPadConv(in_channels, 32, 3, stride=stride), NORM, nn.ReLU(inplace=True)),
            ConvBN(FixedPadConv(32, 64, 3), NORM, nn.ReLU(inplace=True)),
        )
        self.conv2_module = CONV2_MODULE[depth]
        self.conv3_module = CONV3_MODULE[depth]
        self.stages = nn.ModuleList()
        inputs = 64
        for module in MODULES[depth]:
            stride, rate = schedule.take(module.stride)
            # Multi-grid touches the last module only (the reference's exit_flow/block2).
            grid = multi_grid if module.shortcut == "none" else (1, 1, 1)
            rates = (rate * grid[0], rate * grid[1], rate * grid[2])
            self.stages.append(
                XceptionModule(
                    inputs, module, rates=rates, stride=stride, after_depthwise=after_depthwise
                )
            )
            inputs = module.widths[-1]
        self.channels = Channels(conv2=256, conv3=728, high=inputs)

    def forward(self, x: Tensor) -> Features:
        """(N, C, H, W) -> maps with 256, 728 and 2048 channels."""
        x = self.root(x)  # (N, 64, H/2, W/2)
        # conv2, conv3, high: (N, 256, H/4, W/4), (N, 728, H/8, W/8), (N, 2048, H/os, W/os)
        return residual_features(self.stages, x, conv2=self.conv2_module, conv3=self.conv3_module)
