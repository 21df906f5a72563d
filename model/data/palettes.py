"""Find the palette of masks that hold colours, and translate the colours into class ids.

Each colour is packed into one number, red * 65536 + green * 256 + blue, so that NumPy
can count and look it up quickly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data import camvid, cityscapes, voc
from model.data.pairs import VOID, Color, Dataset, meanings

SHOWN = 8  # unknown colours named in a line


def pack(color: Color) -> int:
    """One number for a colour."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def unpack(packed: int) -> Color:
    """Return the colour of a number."""
    return packed >> 16, packed >> 8 & 255, packed & 255


@dataclass(frozen=True)
class Palette:
    """Class ids by packed colour; 255 for the colours of void."""

    name: str
    ids: dict[int, int]

    @classmethod
    def of(cls, name: str, colors: Iterable[Color], void: Iterable[Color]) -> Palette:
        """Make a palette of colours in class order; a class wins over void of the same colour."""
        ids = {pack(color): VOID for color in void}
        # Backwards: of two classes of one colour the first keeps it.
        ids |= {pack(color): index for index, color in reversed([*enumerate(colors)])}
        return cls(name, ids)

    def unknown(self, colors: Counter[int]) -> Counter[int]:
        """Return those of the counted colours that are not in the palette."""
        return Counter({color: n for color, n in colors.items() if color not in self.ids})


PUBLISHED = (
    Palette.of("voc", voc.palette(len(voc.CLASSES)), [voc.VOID_COLOR]),
    Palette.of("cityscapes", cityscapes.PALETTE, cityscapes.VOID_COLORS),
    Palette.of("camvid", camvid.PALETTE, [camvid.VOID_COLOR]),
)


def choose(dataset: Dataset, colors: Counter[int], *, gray: bool = True) -> Palette:
    """Return the palette that explains most pixels: the set's own, or one of as many classes.

    A published palette is only known by its number of classes; its ids mean its own
    classes in their order. With `gray` a mask may also hold the values themselves, in
    three equal channels.
    """
    name = dataset.name
    if name == "folder":  # without a palette of its own it has VOC's
        name = "dataset.toml" if dataset.own_palette else "voc"
    own = Palette.of(name, dataset.palette, dataset.void_colors)
    classes = len(dataset.classes)
    fitting = [p for p in PUBLISHED if {*p.ids.values()} - {VOID} == {*range(classes)}]
    if gray:
        values = meanings(dataset, dataset.pairs[0].mask)
        fitting.append(Palette("gray", {pack((v, v, v)): index for v, index in values.items()}))
    return min([own, *fitting], key=lambda palette: palette.unknown(colors).total())


def packed_pixels(picture: Image.Image) -> NDArray[np.uint32]:
    """Return the colours of a picture of any mode, (H, W) uint32; transparency is ignored."""
    rgb = np.asarray(picture.convert("RGB")).astype(np.uint32)
    return rgb @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def count(pixels: NDArray[np.uint32]) -> Counter[int]:
    """Count the pixels of each colour."""
    colors, numbers = np.unique(pixels, return_counts=True)
    return Counter(dict(zip(colors.tolist(), numbers.tolist(), strict=True)))


def to_ids(pixels: NDArray[np.uint32], palette: Palette) -> NDArray[np.uint8]:
    """Translate packed colours (H, W) into class ids (H, W); every colour must be known."""
    colors, places = np.unique(pixels, return_inverse=True)
    ids = np.array([palette.ids[color] for color in colors.tolist()], np.uint8)
    return ids[places.reshape(pixels.shape)]


def named(colors: Counter[int]) -> str:
    """Name the commonest colours with their pixels: "(1, 2, 3) in 40 pixels, ..."."""
    most = [f"{unpack(color)} in {n} pixels" for color, n in colors.most_common(SHOWN)]
    hidden = len(colors) - len(most)
    return ", ".join(most) + (f" and {hidden} more colours" if hidden else "")
