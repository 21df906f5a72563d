"""The exported computation: uint8 photos in, uint8 label maps out.

A separate module around the network, so that the training net stays free of
everything that only an exported file needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.deeplab import DeepLabV3Plus
from model.layers import resize


class LabelGraph(nn.Module):
    """Normalisation, network, resizing of logits and argmax in one graph."""

    def __init__(self, net: DeepLabV3Plus) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8, RGB -> labels (N, H, W) uint8, logits (N, K, h, w) float32.

        The logits, at the network's own stride, are there to be compared when
        the file is made; the file itself returns labels only.
        """
        logits = self.net(image.permute(0, 3, 1, 2).float())
        full = resize(
            logits, (image.shape[1], image.shape[2]), align_corners=self.net.config.align_corners
        )
        return full.argmax(dim=1).to(torch.uint8), logits
