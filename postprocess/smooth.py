"""Make labels that follow the photo's edges, from the network's coarse probabilities.

Labels that are repeated to the size of a large photo have borders like stairs. Here, the
probabilities of the classes are sharpened along the edges of the photo by a guided filter (He, Sun
and Tang, 2013; computed on the small photo as in "Fast Guided Filter", He and Sun 2015), and then
enlarged. The filter works like this:
in each small window a probability is a linear function of the photo's brightness.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from postprocess.grid import Grid
from postprocess.runs import Labels

RADIUS = 8  # of the windows, in pixels of the guide; logits are 4 pixels apart
MOST_CLASSES = 16  # per photo: the time grows with them, and noise may have any number
EPSILON = 0.002  # a variance of brightness, 0 to 1: weaker edges than its root are ignored

Plane = NDArray[np.floating[Any]]  # float32


def candidates(labels: Labels) -> list[int]:
    """Return the classes in a map that smooth labels may have: the MOST_CLASSES largest."""
    counts = np.bincount(labels.ravel(), minlength=256)
    largest = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    return sorted(largest[counts[largest] > 0].tolist())


def smooth_labels(
    grid: Grid, classes: Collection[int], guide: Labels, size: tuple[int, int]
) -> Labels:
    """Return the most probable of `classes` for each pixel of a photo of `size` (W, H): (H, W).

    `guide`: the photo (h, w, 3), at any size that is not larger. Of equal probabilities the class
    with the lower id wins.
    """
    grey = np.asarray(Image.fromarray(guide).convert("L"), np.float32) / 255
    window = Guide(grey)
    labels: Labels | None = None
    for label in sorted(classes):
        plane = window.sharpened(enlarged(grid, label, guide.shape[1::-1], size))
        bytes_ = Image.fromarray((plane.clip(0, 1) * 255 + 0.5).astype(np.uint8))
        chance = np.asarray(bytes_.resize(size, Image.Resampling.BILINEAR))
        if labels is None:
            labels, best = np.full(chance.shape, label, np.uint8), chance.copy()
            continue
        better = chance > best
        np.copyto(labels, label, where=better)
        np.copyto(best, chance, where=better)
    if labels is None:
        raise ValueError("classes is empty")
    return labels


def enlarged(grid: Grid, label: int, wanted: tuple[int, int], photo: tuple[int, int]) -> Plane:
    """Interpolate a class's probability at a photo resized to `wanted` (w, h): (h, w), 0 to 1."""
    plane = np.pad(grid.values[label], 1, mode="edge").astype(np.float32) / 255
    box = [
        # Pillow counts from the edges of points, and the padding has added one.
        (end - origin) / step + 1.5
        for end, origin, step in (
            (0, grid.origin[0], grid.step[0]),
            (0, grid.origin[1], grid.step[1]),
            (photo[0], grid.origin[0], grid.step[0]),
            (photo[1], grid.origin[1], grid.step[1]),
        )
    ]
    inside = [max(0.0, box[0]), max(0.0, box[1])]
    inside += [min(plane.shape[1], box[2]), min(plane.shape[0], box[3])]
    image = Image.fromarray(plane).resize(
        wanted, Image.Resampling.BILINEAR, box=(inside[0], inside[1], inside[2], inside[3])
    )
    return np.asarray(image)


class Guide:
    """A grey photo (h, w), 0 to 1, that planes of its size are filtered by."""

    def __init__(self, grey: Plane, radius: int = RADIUS, epsilon: float = EPSILON) -> None:
        self.grey, self.radius = grey, radius
        self.weights = 1 / box_sum(np.ones_like(grey), radius)
        self.mean = self._mean(grey)
        self.spread = self._mean(grey * grey) - self.mean * self.mean + epsilon

    def sharpened(self, plane: Plane) -> Plane:
        """Return the guided filter's output for a plane."""
        mean = self._mean(plane)
        slope = (self._mean(self.grey * plane) - self.mean * mean) / self.spread
        offset = mean - slope * self.mean
        return self._mean(slope) * self.grey + self._mean(offset)

    def _mean(self, plane: Plane) -> Plane:
        return box_sum(plane, self.radius) * self.weights


def box_sum(plane: Plane, radius: int) -> Plane:
    """Add up the square of 2 * `radius` + 1 pixels around each pixel, clipped to the plane."""
    for axis in (0, 1):
        length = plane.shape[axis]
        sums = np.cumsum(np.moveaxis(plane, axis, 0), axis=0, dtype=np.float32)
        padded = np.concatenate([np.zeros_like(sums[:1]), sums])
        at = np.arange(length)
        plane = padded[np.minimum(at + radius + 1, length)] - padded[np.maximum(at - radius, 0)]
        plane = np.moveaxis(plane, 0, axis)
    return np.ascontiguousarray(plane)
