"""Dilated depthwise convolutions with a fast backward pass on a CPU.

oneDNN has no fast gradient of a depthwise convolution with an atrous rate: on AVX2 it
takes ten times the forward pass and more, a quarter of a light network's iteration. Both
gradients can be computed with operations that are fast:

- with respect to the input: convolve the output's gradient with the kernel rotated by
  180 degrees;
- with respect to the kernel: a convolution with rate r is r * r convolutions of rate 1, each
  on the pixels of one phase (rows and columns a, a + r, a + 2r, ...). Move the phases into the
  batch, and the kernel's gradient is that of an ordinary depthwise convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def speed_up(net: nn.Module) -> None:
    """Give the network's dilated depthwise convolutions the fast backward pass, in place.

    It covers stride 1 with a square odd kernel and "same" zero padding, which is all that
    this project uses. Names and values of the parameters do not change.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and _is_dilated_depthwise(module):
            module.forward = _forward(module)  # type: ignore[method-assign]


def _is_dilated_depthwise(conv: nn.Conv2d) -> bool:
    size, rate = conv.kernel_size[0], conv.dilation[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.bias is None
        and conv.stride == (1, 1)
        and conv.kernel_size == (size, size)
        and size % 2 == 1
        and conv.dilation == (rate, rate)
        and rate > 1
        and conv.padding == (rate * (size // 2),) * 2
        and conv.padding_mode == "zeros"
    )


def _forward(conv: nn.Conv2d) -> Any:
    def forward(x: Tensor) -> Tensor:
        weight = conv.weight
        if torch.is_autocast_enabled("cpu"):  # cast here: backward runs outside of autocast
            kind = torch.get_autocast_dtype("cpu")
            x, weight = x.to(kind), weight.to(kind)
        return DilatedDepthwise.apply(x, weight, conv.dilation[0])  # type: ignore[no-any-return]

    return forward


class DilatedDepthwise(torch.autograd.Function):
    """x (N, C, H, W), weight (C, 1, k, k), rate -> (N, C, H, W): zero padding, stride 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rate: int) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(x, weight)
        ctx.rate = rate
        return _convolve(x, weight, rate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients with respect to x and weight."""
        (gradient,), (x, weight), rate = gradients, ctx.saved_tensors, ctx.rate
        by_x = _convolve(gradient, weight.flip(2, 3), rate) if ctx.needs_input_grad[0] else None
        by_weight = _by_weight(gradient, x, weight, rate) if ctx.needs_input_grad[1] else None
        return by_x, by_weight, None


def _convolve(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    padding = rate * (weight.shape[2] // 2)
    return F.conv2d(x, weight, padding=padding, dilation=rate, groups=weight.shape[0])


def _by_weight(gradient: Tensor, x: Tensor, weight: Tensor, rate: int) -> Tensor:
    if min(x.shape[2:]) >= rate * weight.shape[2]:  # smaller phases are not faster
        gradient, x, rate = phases(gradient, rate), phases(x, rate), 1
    padding = rate * (weight.shape[2] // 2)
    _, by_weight, _ = torch.ops.aten.convolution_backward(
        *(gradient, x, weight, None, [1, 1], [padding] * 2, [rate] * 2),
        *(False, [0, 0], weight.shape[0], [False, True, False]),
    )
    return by_weight  # type: ignore[no-any-return]


def phases(x: Tensor, rate: int) -> Tensor:
    """(N, C, H, W) -> (N * rate * rate, C, ceil(H / rate), ceil(W / rate)), zeros at the end."""
    n, c, height, width = x.shape
    x = F.pad(x, (0, -width % rate, 0, -height % rate))
    rows, columns = x.shape[2] // rate, x.shape[3] // rate
    x = x.view(n, c, rows, rate, columns, rate).permute(0, 3, 5, 2, 4, 1)
    return x.reshape(n * rate * rate, rows, columns, c).permute(0, 3, 1, 2)
