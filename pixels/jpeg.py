"""Decode large JPEGs at a fraction of their size, where fewer pixels are needed.

libjpeg then transforms only the lowest frequencies of each block: a half, a quarter or an eighth
of the size takes a fraction of the time and memory, and each pixel is about the mean of those that
it stands for.
"""

from __future__ import annotations

from PIL import Image

FORMATS = ("JPEG", "MPO")
# A reduced JPEG needs this share of the wanted pixels per side. An eighth of 4000 is 500 pixels;
# if 513 are wanted, decoding a quarter instead would take 1.5 times as long.
ENOUGH = 0.95


def reduce(image: Image.Image, side: int) -> None:
    """Let a JPEG that is not yet loaded be decoded with about `side` pixels on its longer side.

    It has at least ENOUGH of them. Smaller photos and other formats stay as they are.
    """
    if image.format not in FORMATS or max(image.size) <= side:
        return
    scale = side / max(image.size)
    width, height = (max(1, round(each * ENOUGH * scale)) for each in image.size)
    image.draft("RGB", (width, height))  # divides by these sides
