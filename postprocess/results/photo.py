"""A photo as the results need it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = Image.Image | NDArray[np.uint8]  # sRGB
BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Photo:
    """The pixels and facts of a photo that the outputs need."""

    size: tuple[int, int]  # (W, H), upright
    orientation: int = 1  # the applied value of the EXIF tag; 1: as stored
    picture: Picture | None = None  # at least of `size`, if it was requested
    decoded: Picture | None = None  # possibly smaller than `size`, if it was requested

    @cached_property
    def whole(self) -> Image.Image:
        """The picture of `size`; raises ValueError if it was not kept."""
        return shrunk(as_image(self.picture), self.size)

    def guide(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the picture as it was decoded, at a size (W, H): (H, W, 3).

        Raises ValueError if it was not kept.
        """
        decoded = self.decoded
        if isinstance(decoded, np.ndarray) and decoded.shape[1::-1] == size:
            return decoded  # a photo in windows may be large
        return np.asarray(shrunk(as_image(decoded), size))

    def limited(self, size: tuple[int, int]) -> Self:
        """Return the photo at a smaller size (W, H)."""
        return replace(self, size=size)


def as_image(picture: Picture | None) -> Image.Image:
    """Return a picture as a Pillow image; raises ValueError for None."""
    if picture is None:
        raise ValueError("the photo was decoded without keeping its picture")
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture at a size (W, H)."""
    return image if image.size == size else image.resize(size, BILINEAR, reducing_gap=2.0)


def limited(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Return a size (W, H) shrunk until no side is longer than `max_side`."""
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longest)) for side in size)
    return width, height
