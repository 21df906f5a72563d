"""Decode a photo and encode a mask, for both servers. Needs only NumPy and Pillow."""

from __future__ import annotations

import io
import json
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

GREY = 127  # beside and below smaller photos

Input = dict[str, Any]  # of an exported file's contract


def input_of(session: Any) -> Input:
    """Return how a file wants its photos."""
    contract = json.loads(session.get_modelmeta().custom_metadata_map["deeplab.contract"])
    return contract["input"]  # type: ignore[no-any-return]


def model_input(file: IO[bytes], target: Input) -> tuple[NDArray[np.uint8], Any, Any]:
    """Decode a photo for a file's input.

    Returns (1, H, W, 3), the photo's own size (W, H), and the size (W, H) of its part.
    """
    height, width = target["height"], target["width"]
    stored = Image.open(file)
    stored.draft(
        "RGB", (width, height)
    )  # as in our service, a large JPEG is decoded at half its size
    image = ImageOps.exif_transpose(stored).convert("RGB")
    own = image.size
    image.thumbnail((width, height), Image.Resampling.BILINEAR)
    if target["policy"] == "aligned":  # as in our service, it is padded only as far as needed
        step, (rows, columns) = target["multiple"], target["least"]
        if image.width * height > image.height * width:
            height = max(rows, -(-(image.height - 1) // step) * step + 1)
        else:
            width = max(columns, -(-(image.width - 1) // step) * step + 1)
    pixels = np.full((1, height, width, 3), GREY, np.uint8)
    pixels[0, : image.height, : image.width] = np.asarray(image)
    return pixels, own, image.size


def mask_png(labels: NDArray[np.uint8], own: tuple[int, int], part: tuple[int, int]) -> bytes:
    """The labels (H, W) as a grey PNG of the photo's own size."""
    mask = Image.fromarray(labels[: part[1], : part[0]])
    out = io.BytesIO()
    mask.resize(own, Image.Resampling.NEAREST).save(out, "PNG", compress_level=1)
    return out.getvalue()
