"""Turn a label map into the shapes of a label tool's file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from annotations.errors import Notes
from annotations.keyholes import Corner, keyholed
from annotations.shapes import Color, Mask, Patch, cropped
from postprocess.errors import TooComplex
from postprocess.outlines import of_class, signed_area
from postprocess.regions import Regions

Form = Literal["polygons", "masks"]
Per = Literal["region", "class"]


@dataclass(frozen=True)
class Writing:
    """The parts of label maps to write, and their form."""

    labels: Mapping[int, str]  # the label of each class id that is written, in their order
    colors: Mapping[str, Color]
    form: Form = "polygons"
    per: Per = "region"  # for masks: one for each connected region, or for each class
    tolerance: float = 0.0  # how far a polygon may be off, in pixels; 0: exact
    min_area: int = 0  # pixels; smaller regions are left out, and counted
    prefix: str = ""  # what precedes a photo's name, as the tool finds it
    model: str = ""  # the name of the model, where the tool keeps it
    as_predictions: bool = True  # Label Studio: predictions, or annotations of a person


@dataclass(frozen=True)
class Finished:
    """The class ids of a photo, (H, W) uint8."""

    photo: str  # path with slashes
    ids: NDArray[np.uint8]
    scores: Mapping[int, float] = field(default_factory=dict)  # mean confidence of a class, 0 to 1
    split: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(W, H)."""
        return self.ids.shape[1], self.ids.shape[0]


@dataclass(frozen=True)
class Piece:
    """One shape to write: a ring of corners, or pixels."""

    class_id: int
    label: str
    area: int  # pixels
    ring: tuple[Corner, ...] = ()  # not repeated at the end
    patch: Patch | None = None
    score: float | None = None

    def box(self) -> tuple[float, float, float, float]:
        """The left, the top, the width and the height."""
        if self.patch is not None:
            height, width = self.patch.pixels.shape
            return self.patch.left, self.patch.top, width, height
        xs, ys = zip(*self.ring, strict=True)
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


class Writer(ABC):
    """Write photos one after another, in memory that does not grow with their number."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def add(self, photo: Finished, pieces: list[Piece]) -> None:
        """Write a photo; raises ValueError, and writes nothing, if its name cannot be used."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""


def pieces(photo: Finished, writing: Writing, notes: Notes) -> list[Piece]:
    """The shapes of a photo. Raises ValueError if its outlines have too many corners."""
    find = _outlined if writing.form == "polygons" else _filled
    try:
        found = list(find(photo, writing))
    except TooComplex as error:
        raise ValueError(f"{error}: write masks, or remove small regions first") from None
    large = [piece for piece in found if piece.area >= writing.min_area]
    for _ in range(len(found) - len(large)):
        notes.add(f"region of less than {writing.min_area} pixels", photo.photo)
    return large


def _outlined(photo: Finished, writing: Writing) -> Iterator[Piece]:
    """One polygon for each connected region, its holes joined to it by cuts."""
    exact = {number: of_class(photo.ids, number) for number in _numbers(photo, writing)}
    drawn = exact
    if writing.tolerance:
        from postprocess.simplify import simplified  # noqa: PLC0415 - needs shapely

        drawn = simplified(exact, photo.ids, writing.tolerance)
    for number, label in writing.labels.items():
        for before, after in zip(exact.get(number, []), drawn.get(number, []), strict=True):
            area = sum(map(signed_area, before))
            ring = tuple(keyholed(after))
            yield Piece(number, label, area, ring, score=photo.scores.get(number))


def _numbers(photo: Finished, writing: Writing) -> list[int]:
    """The classes to trace: neighbours too, if their common border is simplified."""
    found = present(photo.ids)
    return found if writing.tolerance else [n for n in found if n in writing.labels]


def present(ids: NDArray[np.uint8]) -> list[int]:
    """The class ids that occur."""
    found: list[int] = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist()
    return found


def _filled(photo: Finished, writing: Writing) -> Iterator[Piece]:
    """The pixels of each class, or of each connected region."""
    found = {*present(photo.ids)}
    regions = Regions.of(photo.ids) if writing.per == "region" else None
    numbered = None if regions is None else regions.map()
    for number, label in writing.labels.items():
        if number not in found:
            continue
        score = photo.scores.get(number)
        if regions is None or numbered is None:
            patch = cropped(photo.ids == number)
            yield Piece(number, label, patch.area(), patch=patch, score=score)
            continue
        for region in np.flatnonzero(regions.labels == number).tolist():
            x0, y0, x1, y1 = regions.boxes[region].tolist()
            pixels: Mask = numbered[y0:y1, x0:x1] == region
            area = int(regions.areas[region])
            yield Piece(number, label, area, patch=Patch(pixels, x0, y0), score=score)


def whole(patch: Patch, size: tuple[int, int]) -> Mask:
    """The pixels of a patch in the whole photo, (H, W)."""
    pixels = np.zeros((size[1], size[0]), np.bool_)
    height, width = patch.pixels.shape
    pixels[patch.top : patch.top + height, patch.left : patch.left + width] = patch.pixels
    return pixels
