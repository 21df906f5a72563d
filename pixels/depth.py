"""Reduce samples of 16 bits to 8.

Files of 16 bits often hold fewer: sensors give 10, 12 or 14, and taken as 16 they are nearly black.
So the brightest sample decides. If none reaches 2^14, white is the smallest of 2^8, 2^10, 2^12 and
2^14 that no sample reaches; otherwise it is 2^16. All channels are divided by the same power of
two, nothing is clipped, black stays black, and alpha is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile

SENSORS = (8, 10, 12, 14)  # bits
DARK = 1 << (SENSORS[-1] - 8)  # a high byte below it may belong to fewer bits
COLORS = {"RGB": 3, "RGBA": 3, "LA": 1}
# Pillow keeps the high byte of such samples, as the raw mode in the file's tiles says. Read in the
# other byte order, they give the low byte. N is the machine's own order.
OTHER_ORDER = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if np.little_endian else ";16L"}


def used_bits(brightest: int) -> int:
    """Return the bits that samples of 16 bits use, by the brightest of them."""
    return next((bits for bits in SENSORS if brightest < 1 << bits), 16)


def eight_bits(samples: NDArray[np.uint16], bits: int | None = None) -> NDArray[np.uint8]:
    """Return the highest 8 of the bits used: those of this array unless `bits` are given."""
    used = used_bits(int(samples.max(initial=0))) if bits is None else bits
    return (samples >> (used - 8)).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Return whether an image that is not yet loaded has colours or alpha of 16 bits a sample."""
    return image.mode in COLORS and any(raw[-4:] in OTHER_ORDER for raw in _raw_modes(image))


def load(
    image: Image.Image, again: Callable[[], Image.Image], *, deep: bool | None = None
) -> Image.Image:
    """Load an image; one of 16 bits a sample is reduced to 8. `again` opens the same file anew.

    `deep`: what `is_deep` said before somebody else loaded the image.
    """
    deep = is_deep(image) if deep is None else deep
    image.load()
    if not deep or max(_brightest(image)) >= DARK:
        return image
    with suppress(ValueError, OSError):  # a raw mode that Pillow reads in one order only
        low = again()
        _swap(low)
        low.load()
        return _merged(image, low)
    return image


def _brightest(image: Image.Image) -> list[int]:
    """Return the brightest high byte of each colour."""
    bands = image.split()[: COLORS[image.mode]]
    return [int(band.getextrema()[1]) for band in bands]  # type: ignore[arg-type] # of grey bands


def _merged(high: Image.Image, low: Image.Image) -> Image.Image:
    """Return 8 bits of samples whose high and low bytes are given; alpha is its high byte.

    The high byte alone decides which bits are used, as no limit lies between two low bytes.
    """
    colors = COLORS[high.mode]
    others = len(high.getbands()) - colors
    bits = used_bits(max(_brightest(high)) << 8)
    top = [value << (16 - bits) & 255 for value in range(256)]
    bottom = [value >> (bits - 8) for value in range(256)]
    merged = ImageChops.add(
        high.point(top * colors + list(range(256)) * others),
        low.point(bottom * colors + [0] * 256 * others),
    )
    merged.info = dict(high.info)
    merged.format = high.format
    return merged


def _raw_modes(image: Image.Image) -> list[str]:
    return [_arguments(tile)[0] for tile in image.tile] if isinstance(image, ImageFile) else []


def _arguments(tile: Any) -> tuple[Any, ...]:
    return tile.args if isinstance(tile.args, tuple) else (str(tile.args),)


def _swap(image: Image.Image) -> None:
    """Let the samples be read in the other byte order."""
    assert isinstance(image, ImageFile)
    image.tile = [tile._replace(args=_swapped(tile.args)) for tile in image.tile]


def _swapped(arguments: Any) -> Any:
    if not isinstance(arguments, tuple):
        return str(arguments)[:-4] + OTHER_ORDER[str(arguments)[-4:]]
    return (arguments[0][:-4] + OTHER_ORDER[arguments[0][-4:]], *arguments[1:])
