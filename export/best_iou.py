"""Labels that maximise the expected IoU, instead of the most probable ones.

The most probable class maximises the number of correct pixels. The mean IoU over classes wants
another choice (Nowozin 2014, "Optimal Decisions from Probabilistic Models: the
Intersection-over-Union Case"). Of the pixels that are given to a class, its intersection with the
truth is expected to be the sum of their probabilities, and its union their number plus the class's
probability in all other pixels. One more pixel of probability p changes the class's IoU J by

    (p (1 + J) - J) / union

so each pixel takes the class for which this is largest. J and the union are those of many photos
together, as the measure is. They follow from the probabilities alone, so the photos need no masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import LabelGraph
from postprocess.grid import Grid, Placing
from service.images.imaging import decode, fit, open_checked
from service.inference.contract import BestIou, InputSize

MOST_PHOTOS = 200  # spread evenly over those that are given
ROUNDS = 10  # labels and expected IoU follow from each other
EVERY = 2  # of the network's points along both axes: neighbours tell the same
# Of all points: with fewer, the IoU of a class cannot be told, and it is treated like the others.
LEAST_SHARE = 1e-4

Chances = NDArray[np.uint8]  # (K, P), probabilities times 255


def measured(graph: LabelGraph, paths: Sequence[Path], target: InputSize) -> BestIou:
    """Run a graph that gives probabilities on photos; find the best weights and margins.

    Raises service.errors.InvalidImage for a file that is no photo.
    """
    places = np.linspace(0, len(paths) - 1, min(MOST_PHOTOS, len(paths))).astype(int)
    chances = [_chances(graph, paths[place], target) for place in places.tolist()]
    weights, margins = decision(np.concatenate(chances, axis=1))
    return BestIou(photos=len(chances), weights=tuple(weights), margins=tuple(margins))


def _chances(graph: LabelGraph, path: Path, target: InputSize) -> Chances:
    """The probabilities at some points of a photo, fitted into the input as in the service."""
    opened = open_checked(path.read_bytes(), 10**8, target.samples)
    decoded = decode(opened, reduce_to=max(target.height, target.width))
    fitted = fit(decoded, target)
    with torch.inference_mode():
        values = graph(torch.from_numpy(np.array(fitted.pixels[None])))[-1][0].numpy()
    placing: Placing = "corners" if graph.net.config.align_corners else "centres"
    height, width = fitted.pixels.shape[:2]
    inside = Grid.of(values, placing, (height, width), fitted.valid, decoded.size).values
    return inside[:, ::EVERY, ::EVERY].reshape(len(inside), -1)


def decision(chances: Chances) -> tuple[list[float], list[float]]:
    """Return each class's weight and margin: the class with most `weight * p - margin` is best.

    The largest weight is 1.
    """
    classes, points = chances.shape
    total = chances.sum(axis=1, dtype=np.float64) / 255
    labels = chances.argmax(axis=0)
    shown = np.bincount(labels, minlength=classes) >= LEAST_SHARE * points
    for _ in range(ROUNDS):
        count = np.bincount(labels, minlength=classes)
        own = np.take_along_axis(chances, labels[None], axis=0)[0] / 255
        inside = np.bincount(labels, weights=own, minlength=classes)
        union = np.maximum(count + total - inside, 1)
        iou = inside / union
        iou, union = (np.where(shown, each, np.median(each[shown])) for each in (iou, union))
        weights, margins = (1 + iou) / union, iou / union
        weights, margins = weights / weights.max(), margins / weights.max()
        labels = best(chances, weights, margins)
    return weights.tolist(), margins.tolist()


def best(
    chances: Chances, weights: NDArray[np.float64], margins: NDArray[np.float64]
) -> NDArray[np.intp]:
    """The best class of each point, (P,)."""
    label = np.zeros(chances.shape[1], np.intp)
    most = np.full(chances.shape[1], -np.inf, np.float32)
    for number, (chance, weight, margin) in enumerate(zip(chances, weights, margins, strict=True)):
        score = chance * np.float32(weight / 255) - np.float32(margin)
        better = score > most
        label[better], most[better] = number, score[better]
    return label
