"""Compute the soft labels of a crop from those of the whole photo.

Teachers answer for whole photos, on a coarse grid. A crop's soft labels are these answers at
the positions of the crop's logits, after the same scaling, cropping, mirroring and warping.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.data.augment import Crop, Rectangle

Floats = NDArray[np.float32]
Places = tuple[NDArray[np.float64], NDArray[np.float64]]  # x and y, (M, M) each


class SoftLabels(Protocol):
    """Class probabilities of whole photos, and how many a crop gets of them."""

    @property
    def spacing(self) -> int: ...  # pixels of the photo between two answers
    @property
    def classes(self) -> int: ...
    @property
    def side(self) -> int: ...  # M: logits along a crop's side, the first and last at its corners
    def read(self, photo: Path) -> Floats: ...  # (K, h, w)


def of_crop(
    labels: SoftLabels,
    photo: Path,
    crop: Crop,
    *,
    size: tuple[int, int],
    side: int,
    source: list[float] | None,
) -> Floats:
    """Soft labels (K, M, M) of a crop of `side` pixels from a photo of `size` (W, H).

    `source` says how the photo was warped before it was cropped (model.data.perturb).
    """
    where = places(crop, size, side, labels.side)
    if source is not None:
        where = unbent(where, source)
    return sample(labels.read(photo), where, labels.spacing)


def places(crop: Crop, size: tuple[int, int], side: int, points: int) -> Places:
    """The positions of the logits of a crop of `side` pixels in a picture of `size` (W, H).

    They are in pixels of the picture, whose centres have whole numbers.
    """
    width, height = (max(1, round(length * crop.scale)) for length in size)
    at = np.linspace(0, side - 1, points)
    columns = side - 1 - at if crop.flip else at
    x = (crop.left + columns + 0.5) * size[0] / width - 0.5
    y = (crop.top + at + 0.5) * size[1] / height - 0.5
    grid_x, grid_y = np.meshgrid(x, y)
    return grid_x, grid_y


def unbent(where: Places, source: list[float]) -> Places:
    """Map positions in a warped picture to the original one (Pillow's PERSPECTIVE)."""
    a, b, c, d, e, f, g, h = source
    x, y = where[0] + 0.5, where[1] + 0.5
    below = g * x + h * y + 1
    return (a * x + b * y + c) / below - 0.5, (d * x + e * y + f) / below - 0.5


def sample(answers: Floats, where: Places, spacing: int) -> Floats:
    """Read answers (K, h, w), `spacing` pixels apart, bilinearly at places (M, M): (K, M, M)."""
    height, width = answers.shape[1:]
    x = (where[0] / spacing).clip(0, width - 1).astype(np.float32)
    y = (where[1] / spacing).clip(0, height - 1).astype(np.float32)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    x, y = (x - left).astype(np.float32), (y - top).astype(np.float32)
    upper = answers[:, top, left] * (1 - x) + answers[:, top, right] * x
    lower = answers[:, bottom, left] * (1 - x) + answers[:, bottom, right] * x
    return np.asarray(upper * (1 - y) + lower * y)


def paste(answers: Floats, other: Floats, place: Rectangle, side: int) -> Floats:
    """A copy of (K, M, M) with the other's inside a rectangle of the crop of `side` pixels."""
    at = np.linspace(0, side - 1, answers.shape[1])
    rows, columns = ((at >= span.start) & (at < span.stop) for span in place)
    return np.where(rows[:, None] & columns, other, answers)
