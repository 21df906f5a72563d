"""Label maps as palette images and as overlays on their photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.checkpoint import Card, Color
from model.network.inference import Photo

OVERLAY_ALPHA = 0.55


def colored(labels: NDArray[np.uint8], palette: Sequence[Color]) -> Image.Image:
    """A palette image whose pixel values are the class ids.

    The palette always has 256 entries: with fewer, Pillow renumbers the ids on saving.
    """
    table = [channel for color in palette for channel in color]
    mask = Image.fromarray(labels, mode="P")
    mask.putpalette(table + [0] * (768 - len(table)))
    return mask


def overlaid(image: Photo, labels: NDArray[np.uint8], card: Card) -> Image.Image:
    """Blend the mask's colours into the photo; a class named background stays clear.

    Of more than three channels the first three are shown as red, green and blue.
    """
    strength = np.full(256, round(255 * OVERLAY_ALPHA), np.uint8)
    if "background" in card.classes:
        strength[card.classes.index("background")] = 0
    colors = colored(labels, card.palette).convert("RGB")
    return Image.composite(
        colors,
        Image.fromarray(np.ascontiguousarray(image[..., :3])),
        Image.fromarray(strength[labels]),
    )
