"""The exported computation: uint8 photos in, uint8 label maps out.

A separate module around the network, so that the training net stays free of
everything that only an exported file needs. Scales and flips are the same
functions that `model.predict` runs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.deeplab import DeepLabV3Plus
from model.predict import average_probabilities, full_logits


class HalfPrecision(DeepLabV3Plus):
    """A network that computes in float16 behind a float32 interface."""

    def __init__(self, net: DeepLabV3Plus) -> None:
        nn.Module.__init__(self)
        self.net = copy.deepcopy(net).half()
        self.config = net.config

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 255] -> (N, K, h, w) float32 logits."""
        return self.net(image.half()).float()  # type: ignore[no-any-return]


class LabelGraph(nn.Module):
    """Normalisation, network, resizing of logits, averaging and argmax in one graph."""

    def __init__(
        self,
        net: DeepLabV3Plus,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        confidence: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.scales = tuple(scales)
        self.flip = flip
        self.confidence = confidence

    @property
    def single_pass(self) -> bool:
        """Whether softmax may be left out, because it does not change the order."""
        return self.scales == (1.0,) and not self.flip

    def scores(self, image: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, K, H, W): logits of one pass, or mean probabilities."""
        x = image.permute(0, 3, 1, 2).float()
        if self.single_pass:
            return full_logits(self.net, x, 1.0)
        return average_probabilities(self.net, x, self.scales, flip=self.flip)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, H, W, 3) uint8, RGB -> labels (N, H, W) uint8, scores [, confidence].

        Confidence is the probability of the label times 255, (N, H, W) uint8.
        The scores are there to be compared when the file is made; the file
        itself does not return them.
        """
        scores = self.scores(image)
        labels = scores.argmax(dim=1).to(torch.uint8)
        if not self.confidence:
            return labels, scores
        best = largest_probability(scores) if self.single_pass else scores.amax(dim=1)
        return labels, scores, (best * 255.0 + 0.5).to(torch.uint8)


def largest_probability(logits: Tensor) -> Tensor:
    """Softmax of the largest logit alone: (N, K, H, W) -> (N, H, W)."""
    below = logits - logits.amax(dim=1, keepdim=True)
    return below.exp().sum(dim=1).reciprocal()
