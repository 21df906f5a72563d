"""Make labels that follow the photo's edges, from the network's coarse probabilities.

Labels that are repeated to the size of a large photo have borders like stairs. Here, the
probabilities of the classes are sharpened along the edges of the photo by a guided filter (He, Sun
and Tang, 2013), and then enlarged. In each small window, the filter makes a probability a linear
function of the photo's brightness. As in "Fast Guided Filter" (He and Sun, 2015), these functions
are computed on smaller pictures. Only tiles that a border may cross are enlarged; the others have
a single class.

A photo that was cut into windows has probabilities for its own pixels, so that nothing is enlarged.
It is filtered in pieces, so that the memory does not grow with the photo.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from postprocess.grid import Grid
from postprocess.runs import Ints, Labels

RADIUS = 4  # of the windows, in points of the functions; logits are 2 of them apart
STRIDE = 2  # pixels of the guide between these points
MOST_CLASSES = 16  # per photo: the time grows with them, and noise may have any number
EPSILON = 0.002  # a variance of brightness, 0 to 1: weaker edges than its root are ignored
TILE = 16  # pixels of the guide
PIECE = 480  # pixels of the guide: smaller ones have fewer classes, and more in the margin
# Pixels of the guide that a pixel depends on: two windows, and the points around it.
REACH = STRIDE * (2 * RADIUS + 2)

Plane = NDArray[np.floating[Any]]  # float32
Scores = NDArray[Any]  # (K, h, w), uint8 or float32; the largest wins
Values = Sequence[float]  # of each class of the grid
Decision = tuple[Values, Values]  # weights and margins
Box = tuple[float, float, float, float]  # left, top, right, bottom


def candidates(labels: Labels) -> list[int]:
    """Return the classes in a map that smooth labels may have: the MOST_CLASSES largest."""
    counts = np.bincount(labels.ravel(), minlength=256)
    largest = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    return sorted(largest[counts[largest] > 0].tolist())


def smooth_labels(
    grid: Grid,
    classes: Collection[int],
    guide: Labels,
    size: tuple[int, int],
    decision: Decision | None = None,
) -> Labels:
    """Return the most probable of `classes` for each pixel of a photo of `size` (W, H): (H, W).

    `guide`: the photo (h, w, 3), at any size that is not larger. `decision`: weights and margins
    of all classes; then the class with the largest weight * probability - margin is taken. Of
    equal ones the class with the lower id wins.
    """
    if not classes:
        raise ValueError("classes is empty")
    ordered = sorted(classes)
    if size == guide.shape[1::-1]:
        return _in_pieces(grid, ordered, guide, decision)
    planes = sharpened(grid, ordered, guide, (0, 0, *size))
    return largest(_scores(planes, ordered, decision), np.array(ordered, np.uint8), size)


def _in_pieces(
    grid: Grid, classes: Sequence[int], guide: Labels, decision: Decision | None
) -> Labels:
    """Return the best class for each pixel of a guide of the photo's own size (H, W, 3): (H, W)."""
    labels = np.empty(guide.shape[:2], np.uint8)
    pieces = product(*(_pieces(length) for length in guide.shape[:2]))
    for ((top, bottom), (above, below)), ((left, right), (before, behind)) in pieces:
        near = grid.within((before, above, behind, below))
        able = classes if decision else _possible(near, classes)
        planes = sharpened(
            near, able, guide[above:below, before:behind], (before, above, behind, below)
        )
        inner = planes[:, top - above : bottom - above, left - before : right - before]
        best = _scores(inner, able, decision).argmax(axis=0)
        labels[top:bottom, left:right] = np.array(able, np.uint8)[best]
    return labels


def _pieces(length: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Divide a side of a guide; yield each piece, and the pixels that its labels depend on.

    All begin at a point of the functions, so that these are the same in neighbouring pieces.
    """
    points = np.linspace(0, -(-length // STRIDE), 1 + -(-length // PIECE)).astype(int) * STRIDE
    for start, end in pairwise(points.clip(0, length).tolist()):
        yield (start, end), (max(0, start - REACH), min(length, end + REACH))


def _possible(grid: Grid, classes: Sequence[int]) -> Sequence[int]:
    """Return the classes that may win somewhere on a grid.

    The others are less than half as probable everywhere as the most probable class is anywhere,
    and filtering takes means.
    """
    values = grid.values[list(classes)]
    least = values.max(axis=0).min()
    highest = values.max(axis=(1, 2))
    return [label for label, most in zip(classes, highest, strict=True) if 2 * int(most) >= least]


def _scores(planes: Plane, classes: Sequence[int], decision: Decision | None) -> Scores:
    """Return what classes are compared by: (K, h, w)."""
    if decision is None:
        return (planes * 255 + 0.5).astype(np.uint8)
    chosen = np.array(classes)
    weights, margins = (np.array(each, np.float32)[chosen][:, None, None] for each in decision)
    scores: Scores = planes * weights - margins
    return scores


def sharpened(grid: Grid, classes: Collection[int], guide: Labels, place: Box) -> Plane:
    """Return the probabilities of some classes at the guide's size, along its edges: (K, h, w).

    `place`: the part of the photo that the guide shows.
    """
    height, width = guide.shape[:2]
    grey = Image.fromarray(np.asarray(Image.fromarray(guide).convert("L"), np.float32) / 255)
    few = (-(-width // STRIDE), -(-height // STRIDE))
    planes = np.stack([enlarged(grid, label, few, place) for label in classes])
    small = np.asarray(grey.resize(few, Image.Resampling.BILINEAR))
    slopes, offsets = Guide(small).functions(planes)
    found = np.empty((len(classes), height, width), np.float32)
    for slope, offset, plane in zip(slopes, offsets, found, strict=True):
        np.multiply(_resized(slope, (width, height)), np.asarray(grey), out=plane)
        np.add(plane, _resized(offset, (width, height)), out=plane)
    return found.clip(0, 1, out=found)


def largest(scores: Scores, classes: Labels, size: tuple[int, int]) -> Labels:
    """Enlarge the scores (K, h, w) of `classes` (K,), and return the class of the largest: (H, W).

    The result is that of enlarging all scores with bilinear interpolation. As an interpolated
    score is never larger than the largest one around it, most tiles have only one class that can
    win.
    """
    height, width = scores.shape[1:]
    rows, columns = _bounds(height, size[1]), _bounds(width, size[0])
    able = _able(scores, rows * (height / size[1]), columns * (width / size[0]))
    first: Labels = classes[able.argmax(axis=0)]
    labels = first.repeat(np.diff(rows), axis=0).repeat(np.diff(columns), axis=1)
    images = [Image.fromarray(each) for each in scores]
    for row, column in np.argwhere(able.sum(axis=0) > 1).tolist():
        (top, bottom), (left, right) = rows[row : row + 2], columns[column : column + 2]
        part = (left, top, right, bottom)
        known = [(classes[k], images[k]) for k in np.flatnonzero(able[:, row, column])]
        labels[top:bottom, left:right] = _contest(known, part, size)
    return labels


def _bounds(few: int, many: int) -> Ints:
    """Return where tiles of about TILE of `few` pixels begin and end, in `many` pixels."""
    return np.linspace(0, many, max(1, few // TILE) + 1).astype(np.int64)


def _able(scores: Scores, rows: Plane, columns: Plane) -> NDArray[np.bool_]:
    """Return which classes can win somewhere in each tile: (K, tiles down, tiles across)."""
    high = _extreme(np.maximum, scores, rows, columns)
    low = _extreme(np.minimum, scores.max(axis=0, keepdims=True), rows, columns)
    return high >= low


def _extreme(extreme: np.ufunc, scores: Scores, rows: Plane, columns: Plane) -> Scores:
    """Reduce each tile, with the pixels around it that enlarging reads."""
    for axis, bounds in ((1, rows), (2, columns)):
        length = scores.shape[axis]
        from_to = [
            (max(0, int(start - 0.5)), min(length, int(end + 0.5) + 1))
            for start, end in pairwise(bounds.tolist())
        ]
        # An end may be past the last pixel only with one more behind it.
        scores = np.concatenate([scores, scores.take([-1], axis=axis)], axis=axis)
        scores = extreme.reduceat(scores, np.ravel(from_to), axis=axis)
        scores = scores.take(np.arange(0, scores.shape[axis], 2), axis=axis)
    return scores


def _contest(
    known: list[tuple[np.uint8, Image.Image]],
    part: tuple[int, int, int, int],
    size: tuple[int, int],
) -> Labels:
    """Return the class of the largest score in a part of the photo, (left, top, right, bottom)."""
    left, top, right, bottom = part
    image = known[0][1]
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, right * across, bottom * down)
    enlarge = (right - left, bottom - top), Image.Resampling.BILINEAR, box
    labels = np.full((bottom - top, right - left), known[0][0], np.uint8)
    best = np.asarray(image.resize(*enlarge))
    for label, other in known[1:]:
        score = np.asarray(other.resize(*enlarge))
        np.copyto(labels, label, where=score > best)
        best = np.maximum(best, score)
    return labels


def _resized(plane: Plane, wanted: tuple[int, int]) -> Plane:
    """Interpolate a plane at another size (w, h)."""
    return np.array(Image.fromarray(plane).resize(wanted, Image.Resampling.BILINEAR))


def enlarged(grid: Grid, label: int, wanted: tuple[int, int], place: Box) -> Plane:
    """Interpolate a class's probability at a part of the photo resized to `wanted` (w, h).

    (h, w), 0 to 1.
    """
    plane = np.pad(grid.values[label], 1, mode="edge").astype(np.float32) / 255
    box = [
        # Pillow counts from the edges of points, and the padding has added one.
        (end - grid.origin[axis % 2]) / grid.step[axis % 2] + 1.5
        for axis, end in enumerate(place)
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

    def functions(self, planes: Plane) -> tuple[Plane, Plane]:
        """Return slopes and offsets (K, h, w): slope * grey + offset is the filtered plane."""
        mean = self._mean(planes)
        slope = (self._mean(self.grey * planes) - self.mean * mean) / self.spread
        offset = mean - slope * self.mean
        return self._mean(slope), self._mean(offset)

    def _mean(self, planes: Plane) -> Plane:
        return box_sum(planes, self.radius) * self.weights


def box_sum(planes: Plane, radius: int) -> Plane:
    """Add up the square of 2 * `radius` + 1 pixels around each pixel, clipped to the plane."""
    for axis in (-2, -1):
        length = planes.shape[axis]
        sums = np.cumsum(np.moveaxis(planes, axis, 0), axis=0, dtype=np.float32)
        padded = np.concatenate([np.zeros_like(sums[:1]), sums])
        at = np.arange(length)
        found = padded[np.minimum(at + radius + 1, length)] - padded[np.maximum(at - radius, 0)]
        planes = np.moveaxis(found, 0, axis)
    return np.ascontiguousarray(planes)
