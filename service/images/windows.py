"""Sliding windows: a large photo at its own resolution, in pieces of the model's size.

Windows lie on a grid, as evenly as whole pixels allow, and overlap by at least the
share asked for. The engine gives labels, not probabilities, so overlaps are not
averaged: each pixel takes the label of the window in which it lies most centrally,
where the network has seen the most around it. Neighbours thus meet in the middle of
their overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from service.errors import ImageTooLarge
from service.images.imaging import Photo
from service.inference.contract import InputSize


@dataclass(frozen=True)
class Sliding:
    """How windows are laid, and how many of them one photo may have."""

    overlap: float  # at least this share of a window's side
    max_windows: int


@dataclass(frozen=True)
class Span:
    """One window along one axis, in pixels of the photo."""

    start: int
    keep: tuple[int, int]  # [from, to): where this window is the most central one


@dataclass(frozen=True)
class Window:
    """One piece of a photo."""

    pixels: NDArray[np.uint8]  # (H, W, 3), of the model's size
    y: Span
    x: Span


def needed(size: tuple[int, int], target: InputSize) -> bool:
    """Whether a photo of `size` (W, H) is larger than the model's input."""
    return size[0] > target.width or size[1] > target.height


def count(size: tuple[int, int], target: InputSize, overlap: float) -> int:
    """How many windows a photo of `size` (W, H) takes; 1 where it needs no cutting."""
    across = len(_starts(size[0], target.width, overlap))
    return across * len(_starts(size[1], target.height, overlap))


def check(size: tuple[int, int], target: InputSize, sliding: Sliding) -> None:
    """Refuse a photo of `size` (W, H) that takes too many windows; raises ImageTooLarge."""
    windows = count(size, target, sliding.overlap)
    if windows > sliding.max_windows:
        raise ImageTooLarge(
            f"the photo takes at least {windows} windows of {target.width} x "
            f"{target.height}, the limit is {sliding.max_windows}: send a smaller image, "
            "lower overlap, or ask for fit=resize"
        )


def cut(photo: Photo, target: InputSize, overlap: float) -> list[Window]:
    """The windows of a photo, row by row; they share its memory."""
    image = np.asarray(photo.image)
    height, width = image.shape[:2]
    if height < target.height or width < target.width:
        image = _padded(image, target)
    rows, columns = spans(height, target.height, overlap), spans(width, target.width, overlap)
    return [
        Window(image[y.start : y.start + target.height, x.start : x.start + target.width], y, x)
        for y in rows
        for x in columns
    ]


def merge(
    answers: Sequence[NDArray[np.uint8]], windows: Sequence[Window], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Each window's central part, put together into a map of `size` (W, H)."""
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
    """The windows along an axis; what they keep covers it once."""
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


def _padded(image: NDArray[np.uint8], target: InputSize) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    shape = (max(height, target.height), max(width, target.width), 3)
    padded = np.empty(shape, np.uint8)
    padded[:] = target.pad
    padded[:height, :width] = image
    return padded
