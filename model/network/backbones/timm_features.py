"""Any backbone of timm that has `features_only`, behind the paper's head.

A config asks for it as `timm:NAME`, such as `timm:convnext_tiny`. timm's classes are of many
authors, so only what all of them report is used: the maps with their strides and widths. The first
map of stride 4 and of stride 8 go to the decoder, the last map of all to the ASPP.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbones.features import Backbone, BackboneError, Channels, Features

PREFIX = "timm:"
INSTALL = "pip install 'deeplab[timm]'"


def name_of(backbone: str) -> str:
    """timm's own name: `timm:convnext_tiny` -> `convnext_tiny`."""
    return backbone.removeprefix(PREFIX)


def library() -> Any:
    """The module `timm`; raises BackboneError where it is not installed."""
    try:
        import timm  # noqa: PLC0415 - an extra
    except ImportError:
        raise BackboneError(f"backbones of timm need an extra: {INSTALL}") from None
    return timm


def created(backbone: str, output_stride: int, **options: Any) -> Any:
    """timm's network with `features_only`, at an output stride.

    Raises BackboneError where timm has no such network, or it cannot run at this stride.
    """
    timm, name = library(), name_of(backbone)
    if output_stride < 32:  # the native stride of nearly all networks
        options["output_stride"] = output_stride
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:8]}*")[:5])
        raise BackboneError(
            f"backbone={backbone!r}: timm has no such network{f'; it has {near}' if near else ''}"
        )
    try:
        net = timm.create_model(name, features_only=True, **options)
    except (TypeError, AssertionError, AttributeError, RuntimeError) as error:
        raise BackboneError(
            f"backbone={backbone!r} cannot be built at output stride {output_stride} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): set "
            "model.output_stride=32, or take another backbone"
        ) from error
    layout = str(getattr(net, "output_fmt", "NCHW")).rpartition(".")[2]
    if layout != "NCHW":
        raise BackboneError(
            f"backbone={backbone!r} has maps of layout {layout}, as windowed transformers do: "
            "take another backbone"
        )
    strides = net.feature_info.reduction()
    if strides[-1] != output_stride or not {4, 8} <= {*strides}:
        raise BackboneError(
            f"backbone={backbone!r} has maps of stride {', '.join(map(str, strides))}: 4, 8 and "
            f"the output stride {output_stride} are needed; "
            + ("take another backbone" if 4 not in strides else "set model.output_stride=32")
        )
    return net


class TimmFeatures(Backbone):
    """A network of timm without its classifier."""

    initialised = True

    def __init__(self, backbone: str, output_stride: int, *, in_channels: int = 3) -> None:
        """Raises BackboneError where timm has no such network, or it cannot run at this stride."""
        super().__init__()
        self.net: nn.Module = created(backbone, output_stride, in_chans=in_channels)
        info: Any = self.net.feature_info
        strides, widths = info.reduction(), info.channels()
        # At output stride 8 or 16 later maps have this stride too: the first one is theirs.
        self.conv2 = strides.index(4)
        self.conv3 = strides.index(8)
        self.output_stride = output_stride
        self.channels = Channels(widths[self.conv2], widths[self.conv3], widths[-1])

    def forward(self, x: Tensor) -> Features:
        """(N, C, H, W) -> the maps of stride 4 and 8, and the last one, each ceil(H / stride)."""
        height, width = x.shape[2:]
        # timm's networks round the sides of odd maps up or down, each in its own way. Sides that
        # divide leave nothing to round; what the padding adds is cut off again.
        right, bottom = -width % self.output_stride, -height % self.output_stride
        maps = self.net(F.pad(x, (0, right, 0, bottom)))
        conv2, conv3, high = (
            each[:, :, : -(-height // stride), : -(-width // stride)]
            for each, stride in (
                (maps[self.conv2], 4),
                (maps[self.conv3], 8),
                (maps[-1], self.output_stride),
            )
        )
        return Features(conv2, conv3, high)
