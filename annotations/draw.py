"""Draw the regions of a photo into a map of class ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from annotations.shapes import Patch, Region, Size

Order = Literal["file", "area", "class"]
ORDERS = {
    "file": "a shape covers those before it in the file, and those of a lower layer",
    "area": "a smaller shape covers a larger one",
    "class": "a shape covers those of classes with a lower id",
}


@dataclass(frozen=True)
class Drawn:
    """The class ids of a photo, (H, W) uint8, and how many pixels several classes claim."""

    ids: NDArray[np.uint8]
    contested: int


def draw(
    regions: Sequence[Region],
    classes: Mapping[str, int],
    size: Size,
    *,
    fill: int,
    order: Order = "file",
) -> Drawn:
    """Paint the regions whose label is in `classes`, from the lowest to the topmost.

    `fill` is the id of pixels that no region covers. Raises ValueError and AnnotationError for
    shapes that cannot be decoded.
    """
    width, height = size
    ids = np.full((height, width), fill, np.uint8)
    covered = np.zeros((height, width), np.bool_)
    contested = np.zeros((height, width), np.bool_)
    patches = [
        (region, classes[region.label], region.shape.patch(size))
        for region in regions
        if region.label in classes
    ]
    for _, number, patch in sorted(patches, key=lambda each: _height(each, order)):
        rows = slice(patch.top, patch.top + patch.pixels.shape[0])
        columns = slice(patch.left, patch.left + patch.pixels.shape[1])
        below, inside = ids[rows, columns], patch.pixels
        contested[rows, columns] |= inside & covered[rows, columns] & (below != number)
        below[inside] = number
        covered[rows, columns] |= inside
    return Drawn(ids, int(contested.sum()))


def _height(each: tuple[Region, int, Patch], order: Order) -> tuple[int, int]:
    """The key by which shapes are stacked; equal ones stay in the file's order."""
    region, number, patch = each
    if order == "area":
        return (0, -patch.area())
    return (number, 0) if order == "class" else (region.layer, 0)
