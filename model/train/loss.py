"""The loss: cross-entropy over labelled pixels, with options.

Options are class weights, hard pixels only, and the focal loss (Lin et al. 2017). Two losses over
each photo's classes can be added to the cross-entropy: the Lovász-Softmax loss (Berman, Triki and
Blaschko 2018), which approximates the mean IoU, and the soft Dice loss (Milletari et al. 2016).

A loss consists of a sum and a weight to divide it by. The weight depends only on the
labels, and weights of parts add up. So a batch can be divided between processes and
micro-batches without changing its loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.data.dataset import VOID
from model.network.layers import resize


@dataclass(frozen=True)
class PixelLoss:
    """Cross-entropy on logits that are resized to the labels' size."""

    class_weights: Tensor | None = None  # (K,) float32
    # Share of each image's judged pixels that count, those of the largest loss.
    hard_share: float = 1.0
    lovasz: float = 0.0  # times the Lovász-Softmax loss of each image, added to the image's mean
    dice: float = 0.0  # factor of each image's soft Dice loss, added in the same way
    focal: float = 0.0  # exponent of 1 - p, p the probability of the label

    def weight(self, labels: Tensor) -> float:
        """The divisor of the sum over labels (N, H, W) uint8."""
        judged = labels != VOID
        if self.hard_share < 1:
            return float(sum(self._hard(int(count)) for count in judged.sum((1, 2))))
        if self.class_weights is None:
            return float(judged.sum())
        return float(self.class_weights.to(labels.device)[labels[judged].long()].sum())

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of losses: logits (N, K, h, w), labels (N, H, W) uint8 -> scalar."""
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = resize(exact, (labels.shape[1], labels.shape[2]))
        # Classes last: the softmax then runs along contiguous memory.
        flat = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        weights = None if self.class_weights is None else self.class_weights.to(flat)
        hard = self.hard_share < 1
        # On a GPU, cross_entropy sums in a single thread block: 15 % of a light network's
        # iteration.
        apart = hard or flat.is_cuda or self.focal > 0
        losses = F.cross_entropy(
            flat,
            labels.reshape(-1).long(),
            weights,
            ignore_index=VOID,
            reduction="none" if apart else "sum",
        )
        if self.focal:
            losses = losses * self._uncertain(flat, labels)
        total = self._hardest(losses.view(len(labels), -1), labels) if hard else losses.sum()
        for factor, loss in ((self.lovasz, lovasz_softmax), (self.dice, soft_dice)):
            if factor:
                total = total + factor * self._by_image(loss, flat, labels)
        return total

    def _uncertain(self, flat: Tensor, labels: Tensor) -> Tensor:
        """(1 - p) ** focal of each pixel, p the probability of its label: (N * H * W,)."""
        plain = F.cross_entropy(
            flat, labels.reshape(-1).long(), ignore_index=VOID, reduction="none"
        )
        # At p = 1 the gradient of a power below 1 is infinite.
        return (1 - torch.exp(-plain)).clamp_min(1e-6) ** self.focal

    def _by_image(
        self, loss: Callable[[Tensor, Tensor], Tensor], flat: Tensor, labels: Tensor
    ) -> Tensor:
        """Sum of each image's loss times its weight: flat is (N * H * W, K)."""
        probabilities = flat.softmax(1).view(len(labels), -1, flat.shape[1])
        total = flat.new_zeros(())
        for probability, truth in zip(probabilities, labels.flatten(1), strict=True):
            judged = truth != VOID
            weight = self.weight(truth[None, None])
            if weight:
                total = total + weight * loss(probability[judged], truth[judged])
        return total

    def _hardest(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Sum of each image's largest losses, (N, H * W); void has loss 0, so it never counts."""
        counts = (labels != VOID).sum((1, 2)).tolist()
        parts = [
            row.topk(self._hard(n)).values.sum() for row, n in zip(losses, counts, strict=True)
        ]
        return torch.stack(parts).sum()

    def _hard(self, judged: int) -> int:
        return math.ceil(self.hard_share * judged)


def soft_dice(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return 1 minus the mean Dice of the classes that occur in labels (P,): (P, K) -> scalar.

    A class's Dice is twice the probability inside, over its pixels and its probability anywhere.
    """
    truth = F.one_hot(labels.long(), probabilities.shape[1]).to(probabilities)
    present = truth.sum(0) > 0
    inside = (probabilities * truth).sum(0)
    dice = 2 * inside / (probabilities.sum(0) + truth.sum(0))
    return 1 - dice[present].mean()


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur in labels (P,) of probabilities (P, K): a scalar.

    For hard predictions it is one minus the classes' mean IoU.
    """
    present = torch.bincount(labels).nonzero().flatten().tolist()
    losses = [_lovasz_of_class(probabilities[:, c], labels == c) for c in present]
    return torch.stack(losses).mean()


def _lovasz_of_class(probability: Tensor, inside: Tensor) -> Tensor:
    """The Lovász extension of one class's Jaccard loss at its errors (algorithm 1 there)."""
    errors = torch.where(inside, 1 - probability, probability)
    ordered, order = errors.sort(descending=True)
    truth = inside[order].to(errors)
    pixels = truth.sum()
    missed, false = truth.cumsum(0), (1 - truth).cumsum(0)
    jaccard = 1 - (pixels - missed) / (pixels + false)
    return ordered @ torch.cat([jaccard[:1], jaccard.diff()])


def median_frequency_weights(counts: NDArray[np.int64]) -> Tensor:
    """Class weights (K,) from pixels by image and class (N, K): median frequency balancing.

    A class's frequency is its share of the pixels of the images that show it;
    its weight is the median frequency divided by its own (Eigen and Fergus 2015,
    section 6.3.2). A class that never occurs weighs 1, which no pixel uses.
    """
    shown = (counts > 0) * counts.sum(axis=1, keepdims=True)
    present = counts.sum(axis=0) > 0
    frequency = counts.sum(axis=0)[present] / shown.sum(axis=0)[present]
    weights = np.ones(counts.shape[1], np.float32)
    weights[present] = np.median(frequency) / frequency
    return torch.from_numpy(weights)
