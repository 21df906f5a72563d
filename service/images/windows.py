"""Sliding windows: segment a large photo at full resolution, in pieces of the model's size.

The windows form a regular grid and overlap by at least the requested share. The engine
returns labels, not probabilities, so overlaps are not averaged: each pixel takes the label
from the window whose centre is nearest, because the network has seen the most context
there. Neighbouring windows meet in the middle of their overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from service.errors import ImageTooLarge
from service.inference.contract import InputSize


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

    pixels: NDArray[np.uint8]  # (H, W, 3), of the model's size
    y: Span
    x: Span


def needed(size: tuple[int, int], target: InputSize) -> bool:
    """Return whether a photo of `size` (W, H) is larger than the model's input."""
    return size[0] > target.width or size[1] > target.height


def count(size: tuple[int, int], target: InputSize, overlap: float) -> int:
    """Return the number of windows for a photo of `size` (W, H); 1 if it fits the model."""
    across = len(_starts(size[0], target.width, overlap))
    return across * len(_starts(size[1], target.height, overlap))


def check(size: tuple[int, int], target: InputSize, sliding: Sliding) -> None:
    """Raise ImageTooLarge if a photo of `size` (W, H) needs too many windows."""
    windows = count(size, target, sliding.overlap)
    if windows > sliding.max_windows:
        raise ImageTooLarge(
            f"the photo needs at least {windows} windows of {target.width} x "
            f"{target.height}, the limit is {sliding.max_windows}: send a smaller image, "
            "lower `overlap`, or use fit=resize"
        )


def cut(
    image: NDArray[np.uint8], size: tuple[int, int], target: InputSize, overlap: float
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


def padded(image: NDArray[np.uint8], target: InputSize) -> NDArray[np.uint8]:
    """Return a photo (H, W, 3) that is at least as large as the model's input."""
    height, width = image.shape[:2]
    if height >= target.height and width >= target.width:
        return image
    shape = (max(height, target.height), max(width, target.width), 3)
    larger = np.empty(shape, np.uint8)
    larger[:] = target.pad
    larger[:height, :width] = image
    return larger
