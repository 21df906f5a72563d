"""Make pictures from a photo and its labels: cut out, blurred or filled with a colour.

If the model gives probabilities, the edge of the subject is soft: within a few pixels of the border
of the labels, the opacity is the subject's probability.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from postprocess.grid import Grid
from postprocess.results.encoders import edges
from postprocess.smooth import enlarged

BAND = 3  # cells of the label map on either side of a border
BLUR = 1 / 40  # of the photo's longer side, so that nothing is recognisable at normal size

# Colours of a probability from 0 to 1, evenly spaced: dark blue, purple, red, orange, light yellow.
# They get lighter all the way, so that they read in grey too.
HEAT = ((13, 8, 60), (110, 20, 120), (205, 55, 75), (245, 145, 40), (252, 250, 180))
HEAT_OPACITY = 0.75

Cells = NDArray[np.uint8]


def opacity(
    cells: Cells,
    ids: Collection[int],
    grid: Grid | None,
    size: tuple[int, int],
    *,
    generous: bool = False,
) -> Image.Image:
    """Return how much each pixel of a photo of `size` (W, H) belongs to the classes: grey.

    `generous`: pixels with a label of the classes belong to them completely.
    """
    subject = np.isin(cells, list(ids))
    soft = np.where(subject, np.uint8(255), np.uint8(0))
    if grid is not None and ids:
        together = grid.values[sorted(ids)].sum(axis=0, dtype=np.int32).clip(0, 255)
        one = replace(grid, values=together[None].astype(np.uint8))
        chance = enlarged(one, 0, cells.shape[::-1], (0, 0, *size))
        near = edges(subject.astype(np.uint8), BAND)
        likely = (np.clip(chance, 0, 1) * 255).astype(np.uint8)
        soft = np.where(near & ~(subject & generous), likely, soft)
    return Image.fromarray(soft).resize(size, Image.Resampling.BILINEAR)


def cut_out(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the subject on a transparent background, cropped to it unless it is empty.

    Invisible pixels are white: without the transparency the background does not come back.
    """
    if (box := mask.getbbox()) is not None:
        photo, mask = photo.crop(box), mask.crop(box)
    cut = Image.new("RGB", photo.size, "white")
    cut.paste(photo, mask=mask.point(lambda opacity: 255 if opacity else 0))
    cut.putalpha(mask)
    return cut


def blurred(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """Blur the photo where the mask is white."""
    radius = max(photo.size) * BLUR
    factor = max(1, int(radius / 4))  # a quarter of the radius is enough detail for a blur
    small = photo.reduce(factor).filter(ImageFilter.GaussianBlur(radius / factor))
    return Image.composite(small.resize(photo.size, Image.Resampling.BICUBIC), photo, mask)


def filled(photo: Image.Image, mask: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Fill the photo with a colour where the mask is white."""
    return Image.composite(Image.new("RGB", photo.size, color), photo, mask)


def heatmap(photo: Image.Image, grid: Grid, label: int, size: tuple[int, int]) -> Image.Image:
    """Return the photo in grey, coloured by a class's probability.

    `size`: (W, H) that the grid lies on; the photo may be smaller.
    """
    chance = np.clip(enlarged(grid, label, photo.size, (0, 0, *size)), 0, 1)
    places = np.linspace(0, 1, len(HEAT))
    levels = np.linspace(0, 1, 256)
    channels = [np.interp(levels, places, channel) for channel in zip(*HEAT, strict=True)]
    colors = np.stack(channels, axis=1).round().astype(np.uint8)
    hot = Image.fromarray(colors[(chance * 255 + 0.5).astype(np.uint8)])
    return Image.blend(photo.convert("L").convert("RGB"), hot, HEAT_OPACITY)


def beside(photo: Image.Image, other: Image.Image) -> Image.Image:
    """Return both pictures side by side."""
    both = Image.new("RGB", (photo.width + other.width, photo.height))
    both.paste(photo, (0, 0))
    both.paste(other, (photo.width, 0))
    return both
