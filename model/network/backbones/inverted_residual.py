"""The block of MobileNetV2 (Sandler et al. 2018, figure 3) and its descendants."""

from __future__ import annotations

from torch import Tensor, nn

from model.network.layers import ConvBN, Norm, SamePadConv


class InvertedResidual(nn.Module):
    """Expand (1x1) to `hidden` channels, filter (depthwise), project (1x1, linear).

    The input is added where stride and channels allow it. Atrous convolution in
    place of a stride adds no shortcut, because the channels differ there.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int,
        kernel: int,
        stride: int,
        rate: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.expand: nn.Module = (
            ConvBN(SamePadConv(inputs, hidden, 1), norm, nn.ReLU6(inplace=True))
            if hidden > inputs
            else nn.Identity()
        )
        depthwise = SamePadConv(hidden, hidden, kernel, stride=stride, rate=rate, groups=hidden)
        self.depthwise = ConvBN(depthwise, norm, nn.ReLU6(inplace=True))
        self.project = ConvBN(SamePadConv(hidden, outputs, 1), norm)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> block output, and the depthwise feature inside the block."""
        filtered = self.depthwise(self.expand(x))
        y = self.project(filtered)
        return (x + y if self.has_shortcut else y), filtered
