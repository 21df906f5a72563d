"""The exported computation, from uint8 photos to uint8 label maps.

This is a separate module around the network, so that the network itself stays
free of what only an exported file needs. Scales and flips are the functions
that `model.predict` runs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.tail import PHASE_WEIGHTS
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import average_probabilities
from model.network.layers import resize
from service.inference.contract import BestIou


class HalfPrecision(DeepLabV3Plus):
    """A network that computes in float16 behind a float32 interface."""

    def __init__(self, net: DeepLabV3Plus) -> None:
        nn.Module.__init__(self)
        self.net = copy.deepcopy(net).half()
        self.config = net.config

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 255] -> (N, K, h, w) float32 logits."""
        return self.net(image.half()).float()  # type: ignore[no-any-return]


class LabelGraph(nn.Module):
    """Normalisation, network, resizing of logits, averaging and argmax in one graph."""

    weights: Tensor
    margins: Tensor

    def __init__(
        self,
        net: DeepLabV3Plus,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        confidence: bool = False,
        probabilities: bool = False,
        best_iou: BestIou | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.scales = tuple(scales)
        self.flip = flip
        self.confidence = confidence
        self.probabilities = probabilities
        self.best_iou = best_iou is not None
        if best_iou is not None:
            self.register_buffer("weights", torch.tensor(best_iou.weights))
            self.register_buffer("margins", torch.tensor(best_iou.margins))

    @property
    def single_pass(self) -> bool:
        """Whether softmax can be left out, because argmax gives the same labels without it."""
        return self.scales == (1.0,) and not self.flip

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, H, W, C) uint8 -> labels (N, H, W) uint8, scores, then the chosen outputs.

        Confidence is the probability of the label times 255, (N, H, W) uint8. Probabilities are
        those of all classes times 255, at the resolution of the logits, (N, K, h, w) uint8.
        The scores are for the comparison at export; the finished file does
        not return them.
        """
        x = image.permute(0, 3, 1, 2).float()
        coarse, scores = self.scored(x)
        labels = scores.argmax(dim=1).to(torch.uint8)
        found = [self.laid_out(labels), self.laid_out(scores)]
        if self.confidence:
            found.append(self.laid_out(in_bytes(self.probability(scores, labels))))
        if self.probabilities:
            found.append(in_bytes(coarse))
        return tuple(found)

    def scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image (N, C, H, W) -> probabilities (N, K, h, w), and scores, whose largest is taken."""
        if self.single_pass:
            logits = self.net(x)
            coarse = F.softmax(logits, dim=1)
            return coarse, self.spread(self.decided(coarse) if self.best_iou else logits, x)
        scores = average_probabilities(self.net, x, self.scales, flip=self.flip)
        return self.thinned(scores), self.decided(scores) if self.best_iou else scores

    def decided(self, probabilities: Tensor) -> Tensor:
        """The expected gain in IoU of each class: (N, K, h, w) -> (N, K, h, w)."""
        weights, margins = (each[:, None, None] for each in (self.weights, self.margins))
        return probabilities * weights - margins

    def probability(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The probability of each label: scores (N, K, ...) and labels (N, ...) -> (N, ...)."""
        if self.best_iou:
            chosen = labels.long()
            return (scores.amax(dim=1) + self.margins[chosen]) / self.weights[chosen]
        return largest_probability(scores) if self.single_pass else scores.amax(dim=1)

    def spread(self, logits: Tensor, x: Tensor) -> Tensor:
        """Logits of one pass over the image x, at its size: (N, K, h, w) -> (N, K, H, W)."""
        height, width = x.shape[2:]
        return resize(logits, (height, width), align_corners=self.net.config.align_corners)

    def thinned(self, scores: Tensor) -> Tensor:
        """(N, K, H, W) -> (N, K, h, w), as many as there are logits."""
        height, width = (-(-side // self.net.stride) for side in scores.shape[2:])
        return resize(scores, (height, width), align_corners=self.net.config.align_corners)

    def laid_out(self, values: Tensor) -> Tensor:
        """Values in the order in which they are computed -> (..., H, W)."""
        return values


class PhasedGraph(LabelGraph):
    """One pass, with a convolution in place of the resizing of logits.

    Where logits are r pixels apart, each of the r x r pixels between four of them is a
    fixed weighted sum of the four: a convolution, which is faster than resizing. Argmax
    reads its output (N, K, r * r, h + 1, w + 1) directly, and only the labels, one byte
    each, are moved to their places.
    """

    phase_weights: Tensor

    def __init__(
        self,
        net: DeepLabV3Plus,
        size: tuple[int, int],
        *,
        confidence: bool = False,
        probabilities: bool = False,
        best_iou: BestIou | None = None,
    ) -> None:
        """Raises ValueError if logits of this size (H, W) are not whole pixels apart."""
        super().__init__(net, confidence=confidence, probabilities=probabilities, best_iou=best_iou)
        spacing = logit_spacing(net, size)
        if spacing is None:
            raise ValueError(f"logits of {size} are not a whole number of pixels apart")
        self.spacing = spacing
        weights = phase_weights(*spacing).repeat(net.config.num_classes, 1, 1, 1)
        self.register_buffer(PHASE_WEIGHTS, weights)

    def spread(self, logits: Tensor, _: Tensor) -> Tensor:
        """(N, K, h, w) -> (N, K, r * r, h + 1, w + 1)."""
        classes = self.net.config.num_classes
        phases = F.conv2d(logits, self.phase_weights, padding=1, groups=classes)
        return torch.unflatten(phases, 1, (classes, -1))

    def laid_out(self, values: Tensor) -> Tensor:
        """(..., r * r, h + 1, w + 1) -> (..., H, W)."""
        down, right = self.spacing
        height, width = (
            (values.shape[axis] - 2) * step + 1 for axis, step in ((-2, down), (-1, right))
        )
        phases = torch.unflatten(values, -3, self.spacing)  # (..., r, r, h + 1, w + 1)
        rows = phases.movedim(-3, -1).flatten(-2)  # (..., r, h + 1, W + r)
        pixels = rows.movedim(-3, -2).flatten(-3, -2)  # (..., H + r, W + r)
        return pixels[..., down : down + height, right : right + width]


def logit_spacing(net: DeepLabV3Plus, size: tuple[int, int]) -> tuple[int, int] | None:
    """Pixels between neighbouring logits, (down, right); None if they are not whole."""
    gaps = [(side - 1, -(-side // net.stride) - 1) for side in size]
    if not net.config.align_corners or any(gap == 0 or side % gap for side, gap in gaps):
        return None
    down, right = (side // gap for side, gap in gaps)
    return down, right


def phase_weights(down: int, right: int) -> Tensor:
    """Bilinear weights of four logits in the pixels between them: (down * right, 1, 2, 2)."""
    vertical, horizontal = (torch.arange(count) / count for count in (down, right))
    rows, columns = (torch.stack([1 - part, part], 1) for part in (vertical, horizontal))
    return torch.einsum("ai,bj->abij", rows, columns).reshape(-1, 1, 2, 2)


def in_bytes(probabilities: Tensor) -> Tensor:
    """Probabilities times 255, rounded, as uint8."""
    return (probabilities * 255.0 + 0.5).to(torch.uint8)


def largest_probability(logits: Tensor) -> Tensor:
    """The probability of the most likely class: logits (N, K, H, W) -> (N, H, W)."""
    below = logits - logits.amax(dim=1, keepdim=True)
    return below.exp().sum(dim=1).reciprocal()
