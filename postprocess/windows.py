"""Sliding windows: segment a large photo at full resolution, in pieces of the model's size.

The windows form a regular grid and overlap by at least the requested share. Overlaps are not
averaged: each pixel takes label, confidence and probabilities from the window whose centre is
nearest, because the network has seen the most context there. Neighbouring windows meet in the
middle of their overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from postprocess.errors import TooLarge
from postprocess.grid import Grid, Placing, Probabilities

OVERLAP = 0.25  # default: the share of a window that its neighbour covers too

Floats32 = NDArray[np.float32]


class Target(Protocol):
    """The size of a model's input, and the colour around photos that are smaller."""

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""

    @property
    def width(self) -> int:
        """Pixels from left to right."""

    @property
    def pad(self) -> tuple[int, ...]:
        """The colour, a value for each channel."""


@dataclass(frozen=True)
class Sliding:
    """The overlap of windows, and the most windows that a photo may have."""

    overlap: float  # at least this share of a window's side
    max_windows: int


@dataclass(frozen=True)
class Span:
    """A window along one axis, in pixels of the photo."""

    start: int
    keep: tuple[int, int]  # [from, to): the part to keep


@dataclass(frozen=True)
class Window:
    """A piece of a photo."""

    pixels: NDArray[np.uint8]  # (H, W, C), of the model's size
    y: Span
    x: Span


def needed(size: tuple[int, int], target: Target) -> bool:
    """Return whether a photo of `size` (W, H) is larger than the model's input."""
    return size[0] > target.width or size[1] > target.height


def count(size: tuple[int, int], target: Target, overlap: float) -> int:
    """Return the number of windows for a photo of `size` (W, H); 1 if it fits the model."""
    across = len(_starts(size[0], target.width, overlap))
    return across * len(_starts(size[1], target.height, overlap))


def check(size: tuple[int, int], target: Target, sliding: Sliding) -> None:
    """Raise TooLarge if a photo of `size` (W, H) needs too many windows."""
    windows = count(size, target, sliding.overlap)
    if windows > sliding.max_windows:
        raise TooLarge(
            f"the photo needs at least {windows} windows of {target.width} x "
            f"{target.height} with overlap={sliding.overlap:g}, the limit is "
            f"{sliding.max_windows}: {_cure(size, target, sliding.max_windows)}"
        )


def _cure(size: tuple[int, int], target: Target, most: int) -> str:
    """Return what to do about too many windows: the largest overlap that needs at most `most`."""
    for percent in range(50, -1, -1):
        if count(size, target, percent / 100) <= most:
            return f"use overlap={percent / 100:g} or less, fit=resize, or send a smaller image"
    fewest = count(size, target, 0)
    return f"even without overlap it needs {fewest}, so send a smaller image or use fit=resize"


def cut(
    image: NDArray[np.uint8], size: tuple[int, int], target: Target, overlap: float
) -> list[Window]:
    """Cut a `padded` photo of `size` (W, H) into windows, row by row; they share its memory."""
    width, height = size
    rows, columns = spans(height, target.height, overlap), spans(width, target.width, overlap)
    return [
        Window(image[y.start : y.start + target.height, x.start : x.start + target.width], y, x)
        for y in rows
        for x in columns
    ]


def merge(
    answers: Sequence[NDArray[np.uint8]], windows: Sequence[Window], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Join the central parts of all windows into a map of `size` (W, H)."""
    merged = np.empty(size[::-1], np.uint8)
    for answer, window in zip(answers, windows, strict=True):
        (top, bottom), (left, right) = window.y.keep, window.x.keep
        part = answer[
            top - window.y.start : bottom - window.y.start,
            left - window.x.start : right - window.x.start,
        ]
        merged[top:bottom, left:right] = part
    return merged


def merge_grids(
    answers: Sequence[Probabilities],
    windows: Sequence[Window],
    placing: Placing,
    target: Target,
    size: tuple[int, int],
) -> Grid:
    """Join the probabilities (K, h, w) of all windows into one grid on a photo of `size` (W, H).

    Its points are as far apart as those of a window. The points of a window rarely coincide with
    them, so they are interpolated.
    """
    inside = min(target.height, size[1]), min(target.width, size[0])
    sides = target.height, target.width
    parts = [Grid.of(each, placing, sides, inside, inside[::-1]) for each in answers]
    origin, step = parts[0].origin, parts[0].step
    columns, rows = (
        first + each * np.arange(1 + int((length - 0.5 - first) / each + 1e-9))
        for first, each, length in zip(origin, step, size, strict=True)
    )
    merged = np.empty((len(answers[0]), len(rows), len(columns)), np.uint8)
    for part, window in zip(parts, windows, strict=True):
        (top, bottom), (left, right) = (
            np.searchsorted(points, span.keep).tolist()
            for points, span in ((rows, window.y), (columns, window.x))
        )
        down = (rows[top:bottom] - window.y.start - origin[1]) / step[1]
        across = (columns[left:right] - window.x.start - origin[0]) / step[0]
        values = _between(_between(part.values.astype(np.float32), down, 1), across, 2)
        merged[:, top:bottom, left:right] = values + np.float32(0.5)
    return Grid(merged, origin, step)


def _between(values: Floats32, places: NDArray[np.floating[Any]], axis: int) -> Floats32:
    """Interpolate along an axis at fractional places; those outside take the nearest value."""
    last = values.shape[axis] - 1
    places = places.clip(0, last)
    below = places.astype(np.intp)
    share = (places - below).astype(np.float32)
    share = share[:, None] if axis == 1 else share
    above = np.minimum(below + 1, last)
    found: Floats32 = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
    return found


def spans(length: int, window: int, overlap: float) -> list[Span]:
    """Return the windows along an axis; their `keep` parts cover it exactly once."""
    starts = _starts(length, window, overlap)
    middles = [(left + window + right) // 2 for left, right in pairwise(starts)]
    kept = pairwise([0, *middles, length])
    return [Span(start, keep) for start, keep in zip(starts, kept, strict=True)]


def _starts(length: int, window: int, overlap: float) -> list[int]:
    if length <= window:
        return [0]
    stride = max(1, window - round(window * overlap))
    gaps = -(-(length - window) // stride)
    return [index * (length - window) // gaps for index in range(gaps + 1)]


def padded(image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
    """Return a photo (H, W, C) that is at least as large as the model's input."""
    height, width = image.shape[:2]
    if height >= target.height and width >= target.width:
        return image
    shape = (max(height, target.height), max(width, target.width), len(target.pad))
    larger = np.empty(shape, np.uint8)
    larger[:] = target.pad
    larger[:height, :width] = image
    return larger
