"""Rewrite a trained network before tracing so that ONNX Runtime runs it faster.

The rewritten network computes the same. Batch norm is folded into the
convolutions. A convolution over concatenated maps becomes a sum of convolutions
over the maps: this saves the concatenation and the change of memory layout
around it, and the image-level feature stays one pixel until it is added. The
encoder's map is enlarged by two products with constant matrices, which take half
the time of a Resize. The decoder works in strips of rows that fit into a cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.network.deeplab import ASPP, AtrousSeparableConv, DecoderStage, DeepLabV3Plus
from model.network.layers import ConvBN, SamePadConv, resize

# Of a map between two convolutions of the decoder, 17 MB as a whole at 513x513. In halves the
# decoder took 15 % less time (two cores with 32 MB of L3 cache), in quarters no less.
STRIP_BYTES = 10_000_000
LEAST_ROWS = 5  # of the maps of an aligned file's smallest photos, at stride 8

Size = tuple[int, int]


def rewritten(
    net: DeepLabV3Plus, *, strip_bytes: int | None = STRIP_BYTES, aligned: Size | None = None
) -> DeepLabV3Plus:
    """A faster copy of a network in eval mode that computes the same.

    `strip_bytes` bounds the decoder's maps; None never cuts them into strips. `aligned`: the
    largest size (H, W), if the copy is traced for any aligned size up to that.
    """
    net = folded(net)
    if aligned is not None:
        for module in net.modules():
            if isinstance(module, SamePadConv):
                module.odd = True
    net.aspp = SummedASPP(net.aspp)
    if net.decoder is not None:
        before = net.config.output_stride
        if net.decoder.conv3 is not None:
            net.decoder.conv3 = SummedDecoderStage(
                net.decoder.conv3, strip_bytes=strip_bytes, largest=_maps(aligned, before, 8)
            )
            before = 8
        net.decoder.conv2 = SummedDecoderStage(
            net.decoder.conv2,
            net.logits,
            strip_bytes=strip_bytes,
            largest=_maps(aligned, before, 4),
        )
        net.logits = nn.Identity()  # type: ignore[assignment]  # strips are joined behind it
    return net


def _maps(photo: Size | None, before: int, after: int) -> tuple[Size, Size] | None:
    """The sizes of the maps of these strides, for an aligned photo of this size."""
    if photo is None:
        return None
    height, width = (side - 1 for side in photo)
    return (
        (height // before + 1, width // before + 1),
        (height // after + 1, width // after + 1),
    )


def folded(net: DeepLabV3Plus) -> DeepLabV3Plus:
    """A copy of a network in eval mode with every batch norm folded into its convolution.

    Its activations are not in place. The exporter could fold as well, but it would store
    one copy of the folded weights for every scale and flip that uses them.
    """
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, ConvBN) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
        elif isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False  # in place, the exporter takes twice as long to trace it
    return net


def split(conv: nn.Conv2d, widths: Sequence[int]) -> nn.ModuleList:
    """Convolutions over parts of the input channels that add up to `conv`; the first has its bias.

    A depthwise convolution splits into one per part instead, each with its own
    channels and biases.
    """
    bounds = list(pairwise(accumulate(widths, initial=0)))
    if conv.groups > 1:
        return nn.ModuleList(_depthwise_part(conv, start, stop) for start, stop in bounds)
    return nn.ModuleList(_part(conv, start, stop) for start, stop in bounds)


def _part(conv: nn.Conv2d, start: int, stop: int) -> nn.Conv2d:
    part = _like(conv, stop - start, conv.out_channels, groups=1, bias=start == 0)
    part.weight = nn.Parameter(conv.weight[:, start:stop].detach().clone())
    if start == 0:
        part.bias = conv.bias
    return part


def _depthwise_part(conv: nn.Conv2d, start: int, stop: int) -> nn.Conv2d:
    assert conv.bias is not None  # folding has given it one
    part = _like(conv, stop - start, stop - start, groups=stop - start, bias=True)
    part.weight = nn.Parameter(conv.weight[start:stop].detach().clone())
    part.bias = nn.Parameter(conv.bias[start:stop].detach().clone())
    return part


def _like(conv: nn.Conv2d, inputs: int, outputs: int, *, groups: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        conv.kernel_size,  # type: ignore[arg-type]  # a pair, whatever its annotation says
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
    )


def _conv(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, ConvBN)
    return module.conv


class SummedASPP(ASPP):
    """ASPP whose projection is a sum over the branches."""

    def __init__(self, aspp: ASPP) -> None:
        nn.Module.__init__(self)
        self.pooling, self.branches, self.refine = aspp.pooling, aspp.branches, aspp.refine
        count = len(aspp.branches) + (aspp.pooling is not None)
        width = aspp.project.conv.in_channels // count
        self.parts = split(aspp.project.conv, [width] * count)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H/os, W/os) -> (N, 256, H/os, W/os)."""
        maps = [branch(x) for branch in self.branches]
        if self.pooling is not None:
            maps.insert(0, self.pooling.pooled(x))  # (N, 256, 1, 1), spread by the addition
        terms = [part(each) for part, each in zip(self.parts, maps, strict=True)]
        return self.refine(F.relu(sum(terms[:-1], terms[-1])))  # type: ignore[no-any-return]


def enlarged(
    x: Tensor,
    size: Size,
    *,
    align_corners: bool,
    rows: slice = slice(None),
    largest: tuple[Size, Size] | None = None,
) -> Tensor:
    """`resize` to a larger size, as products with constant matrices; or `rows` of it.

    The sizes must be known, or aligned with `largest`: maps of the largest photo before and
    after. With aligned corners and whole steps a smaller map needs the first rows and columns
    of the same matrices.
    """
    befores, afters = largest or (x.shape[2:], size)
    down, right = (
        torch.from_numpy(interpolation(before, after, align_corners=align_corners))
        for before, after in zip(befores, afters, strict=True)
    )
    if largest is None:
        return down[rows] @ x @ right.T
    height, width = x.shape[2:]
    start, stop = rows.start or 0, size[0] if rows.stop is None else rows.stop
    return down[start:stop, :height] @ x @ right[: size[1], :width].T


def interpolation(before: int, after: int, *, align_corners: bool) -> NDArray[np.float32]:
    """Linear weights of `before` values in each of `after`: (after, before)."""
    if align_corners:
        places = np.linspace(0, before - 1, after)
    else:
        places = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    distances = np.abs(places[:, None] - np.arange(before))
    return (1 - distances).clip(0).astype(np.float32)


class SummedDecoderStage(DecoderStage):
    """A decoder stage whose first convolution is a sum over its two inputs."""

    def __init__(
        self,
        stage: DecoderStage,
        *then: nn.Module,
        strip_bytes: int | None,
        largest: tuple[Size, Size] | None = None,
    ) -> None:
        """`largest`: see `enlarged`."""
        nn.Module.__init__(self)
        self.strip_bytes, self.largest = strip_bytes, largest
        self.reduce, self.align_corners = stage.reduce, stage.align_corners
        first, *rest = stage.convs
        low = stage.reduce.conv.out_channels
        self.depthwise: nn.ModuleList | None = None
        if isinstance(first, AtrousSeparableConv):
            depthwise, pointwise = (_conv(half) for half in first)
            widths = [depthwise.in_channels - low, low]
            self.depthwise, self.parts = split(depthwise, widths), split(pointwise, widths)
        else:
            conv = _conv(first)
            self.parts = split(conv, [conv.in_channels - low, low])
        self.rest = nn.Sequential(*rest, *then)
        self.width = next(_convolutions(self.parts)).out_channels
        # Rows above and below that a row of the result depends on.
        self.halo = sum(conv.kernel_size[0] // 2 for conv in _convolutions(stage.convs))

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """x (N, C, h, w), low (N, L, H, W) -> (N, C', H, W)."""
        low = self.reduce(low)
        size = (low.shape[2], low.shape[3])
        known = all(isinstance(side, int) for side in (*x.shape[2:], *size))
        fast = known or self.largest is not None
        if not fast or x.dtype is not torch.float32:  # float16 is for GPUs
            return self.joined(resize(x, size, align_corners=self.align_corners), low)
        strips = [self.strip(x, low, rows) for rows in self.rows(*size)]
        return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)

    def rows(self, height: int, width: int) -> list[slice]:
        """Split `height` rows evenly into strips whose maps have at most `strip_bytes`.

        The first one has no start, the last one no stop. If sizes vary, into as many as the
        largest size needs and the smallest one has rows for.
        """
        rows, columns = (height, width) if self.largest is None else self.largest[1]
        whole = 4 * self.width * rows * columns
        count = 1 if self.strip_bytes is None else math.ceil(whole / self.strip_bytes)
        if self.largest is not None:
            count = min(count, max(1, LEAST_ROWS // max(1, self.halo)))
        bounds = [None, *(height * index // count for index in range(1, count)), None]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def strip(self, x: Tensor, low: Tensor, rows: slice) -> Tensor:
        """Compute these rows of the result, from the input rows that they depend on."""
        size = (low.shape[2], low.shape[3])
        start, stop = rows.start or 0, size[0] if rows.stop is None else rows.stop
        above = 0 if rows.start is None else self.context(start)
        below = 0 if rows.stop is None else self.context(size[0] - stop)
        wide = slice(start - above, stop + below)
        part = enlarged(x, size, align_corners=self.align_corners, rows=wide, largest=self.largest)
        if rows == slice(None):
            return self.joined(part, low)
        return self.joined(part, low[:, :, wide])[:, :, above : -below or None]

    def context(self, room: int) -> int:
        """The rows to add at an edge of a strip that has `room` rows beyond it."""
        return min(self.halo, room) if isinstance(room, int) else self.halo

    def joined(self, x: Tensor, low: Tensor) -> Tensor:
        """Both maps at the size (H, W) of the result."""
        maps = [x, low]
        if self.depthwise is not None:
            maps = [F.relu(conv(part)) for conv, part in zip(self.depthwise, maps, strict=True)]
        total = self.parts[0](maps[0]) + self.parts[1](maps[1])
        return self.rest(F.relu(total))  # type: ignore[no-any-return]


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (each for each in module.modules() if isinstance(each, nn.Conv2d))
