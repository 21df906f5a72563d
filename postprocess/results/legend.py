"""Draw a legend into an overlay: the classes with their colours and shares of the photo."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from postprocess.results.facts import Color
from postprocess.results.png import Rows

MOST_OF_PHOTO = 0.2  # of its area
WIDEST = 0.6  # of its width
TEXT = 1 / 28  # height of letters, of the photo's shorter side
SMALLEST, PLAIN = 8, 11  # pixels: what can just be read, and what is used where there is room
INK, PANEL = (255, 255, 255), (0, 0, 0, 165)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Row:
    """A line of the legend."""

    name: str
    share: str
    color: tuple[int, int, int] | None  # of the swatch

    @property
    def text(self) -> str:
        """Name and share."""
        return f"{self.name} {self.share}"


class Named(Protocol):
    """The names and colours of a model's classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names by id."""

    @property
    def palette(self) -> tuple[Color, ...]:
        """The colours by id."""


def draw(
    picture: Image.Image,
    labels: Rows,
    shares: Mapping[int, float],
    facts: Named,
    corner: int | None = None,
) -> int | None:
    """Draw a legend of classes into a picture (W, H), the largest share first.

    It lies in the corner where it hides least of these classes, and covers at most MOST_OF_PHOTO.
    If there is no room for all classes, the last row tells how many are missing; in a picture that
    is too small for one row, there is no legend. `labels`: of the picture, (H, W).

    Returns the corner, which keeps the legend of a video in its place; None without a legend.
    """
    order = sorted(shares, key=lambda label: (-shares[label], label))
    rows = [
        Row(drawable(facts.classes[each], each), percent(shares[each]), facts.palette[each])
        for each in order
    ]
    layouts = [
        Layout(size) for size in (max(PLAIN, round(min(picture.size) * TEXT)), PLAIN, SMALLEST)
    ]
    fitting = [each.fitting(rows, picture.size) for each in layouts]
    # The largest text that has room for most rows.
    best = max(range(len(layouts)), key=lambda index: len(fitting[index]))
    if not fitting[best]:
        return None
    panel = layouts[best].panel(fitting[best])
    places = _corners(panel.size, picture.size, layouts[best].gap)
    if corner is None:
        corner = _clearest(places, panel.size, labels, list(shares))
    picture.paste(panel, places[corner], panel)
    return corner


def percent(share: float) -> str:
    """`23 %`, `2.3 %`, or `< 0.1 %`."""
    if share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def drawable(name: str, label: int) -> str:
    """Return a name without accents, or `class 7` if Pillow's own font lacks its letters."""
    plain = "".join(
        each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each)
    )
    return (
        plain
        if plain.strip() and plain.isprintable() and all(map(_known, plain))
        else f"class {label}"
    )


@cache
def _known(letter: str) -> bool:
    """Return whether Pillow's own font has a letter: others look like one that no font has."""
    font = ImageFont.load_default(20)
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


class Layout:
    """The sizes of a legend in pixels."""

    def __init__(self, size: int) -> None:
        self.font: Font = ImageFont.load_default(size)
        self.size = size
        self.gap = max(2, size // 2)
        self.line = size + max(2, size // 3)

    def fitting(self, rows: list[Row], photo: tuple[int, int]) -> list[Row]:
        """Return the first rows, as many as a photo (W, H) has room for."""
        widest = int(photo[0] * WIDEST)
        rows = [self._shortened(row, widest - self._indent()) for row in rows]
        for count in range(min(len(rows), photo[1] // self.line), 0, -1):
            left = len(rows) - count
            shown = rows[:count] + ([Row(f"+ {left}", "more", None)] if left else [])
            width, height = self.extent(shown)
            room = MOST_OF_PHOTO * photo[0] * photo[1]
            if width * height <= room and width <= widest and height <= photo[1] - 2 * self.gap:
                return shown
        return []

    def extent(self, rows: list[Row]) -> tuple[int, int]:
        """Return the size (W, H) of a panel."""
        longest = max(self.font.getlength(row.text) for row in rows)
        return int(longest + 1) + self._indent(), self.line * len(rows) + self.gap

    def panel(self, rows: list[Row]) -> Image.Image:
        """Draw the rows on a dark panel that lets the photo shine through."""
        panel = Image.new("RGBA", self.extent(rows), PANEL)
        pen = ImageDraw.Draw(panel)
        for index, row in enumerate(rows):
            top = self.gap // 2 + self.line * index + (self.line - self.size) // 2
            if row.color is not None:
                swatch = (self.gap, top, self.gap + self.size - 1, top + self.size - 1)
                pen.rectangle(swatch, fill=row.color, outline=INK)
            left = self.gap + self.size + self.gap
            pen.text((left, top + self.size / 2), row.text, INK, self.font, anchor="lm")
        return panel

    def _indent(self) -> int:
        return self.gap + self.size + 2 * self.gap

    def _shortened(self, row: Row, room: int) -> Row:
        """Shorten a name until its row fits."""
        name = row.name
        while name and self.font.getlength(row.text) > room:
            name = name[:-1]
            row = replace(row, name=f"{name.rstrip()}…")
        return row


def _corners(
    panel: tuple[int, int], picture: tuple[int, int], margin: int
) -> list[tuple[int, int]]:
    """Return where a panel (W, H) lies in each corner of a picture: (left, top)."""
    right, bottom = (whole - part - margin for whole, part in zip(picture, panel, strict=True))
    return [(margin, bottom), (right, bottom), (margin, margin), (right, margin)]


def _clearest(
    places: list[tuple[int, int]], size: tuple[int, int], labels: Rows, classes: list[int]
) -> int:
    """Return the place where a panel of a size (W, H) hides least of some classes."""
    seen = np.isin(np.arange(256), classes)

    def hidden(place: int) -> int:
        left, top = places[place]
        part = labels.between(top, top + size[1])[:, left : left + size[0]]
        return int(np.count_nonzero(seen[part]))

    return min(range(len(places)), key=hidden)
