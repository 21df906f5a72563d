"""Smooth the label maps of a video over time, and paint them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.uint8]
Item = TypeVar("Item")

Color = tuple[int, int, int]

IDS = 256


def majority(maps: Sequence[Map], own: int) -> Map:
    """Return the most frequent class of each pixel in several maps; `own` decides a tie."""
    ordered = [maps[own], *maps[:own], *maps[own + 1 :]]
    best, most = ordered[0], np.zeros(maps[own].shape, np.uint8)
    for number, each in enumerate(ordered):
        count = np.zeros(each.shape, np.uint8)
        for other in maps:
            count += each == other
        is_more = count > most
        best = each if number == 0 else np.where(is_more, each, best)
        np.maximum(most, count, out=most)
    return best


@dataclass
class Steady(Generic[Item]):
    """Replaces each map by the majority of the `window` maps around it; holds only these."""

    window: int  # odd; 1 changes nothing
    _held: deque[tuple[Item, Map]] = field(default_factory=deque)
    _next: int = 0  # of those held, the first that has not been returned

    def add(self, item: Item, labels: Map) -> Iterator[tuple[Item, Map]]:
        """Add the next map; return the items whose window is complete."""
        self._held.append((item, labels))
        while len(self._held) - self._next > self.window // 2:
            yield self._take()

    def rest(self) -> Iterator[tuple[Item, Map]]:
        """Return the last items, whose windows are shorter."""
        while self._next < len(self._held):
            yield self._take()

    def _take(self) -> tuple[Item, Map]:
        reach = self.window // 2
        first = max(0, self._next - reach)
        near = [labels for _, labels in list(self._held)[first : self._next + reach + 1]]
        taken = self._held[self._next][0], majority(near, self._next - first)
        self._next += 1
        while self._next > reach:
            self._held.popleft()
            self._next -= 1
        return taken


class Paint:
    """Colours of a model's classes."""

    def __init__(self, palette: Sequence[Color], clear: frozenset[int]) -> None:
        """`clear`: the classes that an overlay leaves as they are."""
        self._palette = tuple(palette)
        self._colors = np.zeros((IDS, 3), np.uint8)
        self._colors[: len(palette)] = palette
        self._is_shown = np.zeros(IDS, bool)
        self._is_shown[: len(palette)] = True
        self._is_shown[list(clear)] = False

    def colored(self, labels: Map) -> Map:
        """(H, W) -> the colour of each pixel's class, (H, W, 3)."""
        return self._colors[labels]

    def overlaid(self, photo: Map, labels: Map, alpha: float) -> Map:
        """Blend the colours into the photo (H, W, 3), as the service's overlays do."""
        share = np.where(self._is_shown, round(alpha * IDS), 0).astype(np.uint16)[labels][..., None]
        blended = photo * (IDS - share) + self._colors[labels] * share + IDS // 2
        return (blended >> 8).astype(np.uint8)

    def legend(self, classes: tuple[str, ...]) -> Legend:
        """Return a legend of the classes that an overlay shows."""
        return Legend(classes, self._palette, self._is_shown)


@dataclass
class Legend:
    """Draws the names and shares of classes into frames, as the service does into photos.

    It stays in the corner where it hid least when it was first drawn.
    """

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    shown: NDArray[np.bool_]  # by class id
    _corner: int | None = None

    def drawn(self, picture: Map, labels: Map) -> Map:
        """Return an overlay (H, W, 3) with the legend of its labels (H, W)."""
        from PIL import Image  # noqa: PLC0415 - only legends need it

        from postprocess.results import legend  # noqa: PLC0415 - as Pillow
        from postprocess.results.png import Rows  # noqa: PLC0415

        counts = np.bincount(labels.ravel(), minlength=IDS)
        found = np.flatnonzero(counts * self.shown).tolist()
        if not found:
            return picture
        shares = {label: float(counts[label] / labels.size) for label in found}
        image = Image.fromarray(picture)
        corner = legend.draw(image, Rows.of(labels), shares, self, self._corner)
        self._corner = corner if self._corner is None else self._corner
        return np.asarray(image)
