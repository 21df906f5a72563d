"""Decode a photo and encode a mask, for both servers. Needs only NumPy and Pillow."""

from __future__ import annotations

import io
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

GREY = 127  # beside and below smaller photos


def model_input(file: IO[bytes], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Any, Any]:
    """Decode a photo for input of `size` (H, W).

    Returns (1, H, W, 3), the photo's own size (W, H), and the size (W, H) of its part.
    """
    height, width = size
    stored = Image.open(file)
    stored.draft(
        "RGB", (width, height)
    )  # as in our service, a large JPEG is decoded at half its size
    image = ImageOps.exif_transpose(stored).convert("RGB")
    own = image.size
    image.thumbnail((width, height), Image.Resampling.BILINEAR)
    pixels = np.full((1, height, width, 3), GREY, np.uint8)
    pixels[0, : image.height, : image.width] = np.asarray(image)
    return pixels, own, image.size


def mask_png(labels: NDArray[np.uint8], own: tuple[int, int], part: tuple[int, int]) -> bytes:
    """The labels (H, W) as a grey PNG of the photo's own size."""
    mask = Image.fromarray(labels[: part[1], : part[0]])
    out = io.BytesIO()
    mask.resize(own, Image.Resampling.NEAREST).save(out, "PNG", compress_level=1)
    return out.getvalue()
