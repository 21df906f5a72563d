"""The interface of a backbone: the maps that it returns, and their sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn


class BackboneError(ValueError):
    """A backbone does not exist here, or cannot run as the configuration asks."""


class Features(NamedTuple):
    """The maps that DeepLabv3+ reads from an encoder."""

    conv2: Tensor  # (N, C2, H/4, W/4): low-level feature of the decoder
    conv3: Tensor  # (N, C3, H/8, W/8): second low-level feature (Table 2, last row)
    high: Tensor  # (N, C, H/os, W/os): input of the ASPP


class Channels(NamedTuple):
    """The channel counts of `Features`."""

    conv2: int
    conv3: int
    high: int


class Backbone(nn.Module):
    """An encoder whose `forward` maps (N, C, H, W) normalised images to `Features`."""

    channels: Channels
    initialised = False  # whether its constructor also chooses the weights' initial values


def residual_features(units: Iterable[nn.Module], x: Tensor, *, conv2: int, conv3: int) -> Features:
    """Run residual units one after the other: (N, C, H/2, W/2) -> the maps for DeepLabv3+.

    Each unit returns its output and an inner feature; units number `conv2` and `conv3`
    give the low-level features.
    """
    low = {conv2: x, conv3: x}
    for index, unit in enumerate(units):
        x, inner = unit(x)
        if index in low:
            low[index] = inner
    return Features(low[conv2], low[conv3], x)
