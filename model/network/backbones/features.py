"""The interface of a backbone: the maps that it returns, and their sizes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


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
    """An encoder whose `forward` maps (N, 3, H, W) normalised images to `Features`."""

    channels: Channels
