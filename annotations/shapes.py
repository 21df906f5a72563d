"""The shapes that label tools store, and their pixels.

Coordinates are pixels, x to the right and y down, with (0, 0) at the outer corner of the first
pixel: a pixel belongs to a polygon if its centre is inside, by the even-odd rule. That is
COCO's rule, and COCO's own code draws the polygons of every tool.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from annotations.errors import AnnotationError
from annotations.runs import coco_counts, from_alternating

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]  # (N, 2), x and y
Size = tuple[int, int]  # (W, H) in pixels
Color = tuple[int, int, int]

ARC = 256  # corners of an ellipse; at a radius of 1000 pixels they are 0.08 pixels off


@dataclass(frozen=True)
class Patch:
    """Pixels (h, w) at a place in the photo."""

    pixels: Mask
    left: int = 0
    top: int = 0

    def area(self) -> int:
        """The number of pixels."""
        return int(self.pixels.sum())

    def patch(self, size: Size) -> Patch:
        """Cut off what is outside of a photo of `size`."""
        x0, y0 = max(0, -self.left), max(0, -self.top)
        x1, y1 = (max(0, side - at) for side, at in zip(size, (self.left, self.top), strict=True))
        return Patch(self.pixels[y0:y1, x0:x1], self.left + x0, self.top + y0)


@dataclass(frozen=True)
class Outline:
    """The union of polygons. `relative`: coordinates are shares of the photo's sides."""

    rings: tuple[Points, ...]
    relative: bool = False

    def patch(self, size: Size) -> Patch:
        """Draw the pixels in the polygons' bounding box."""
        scale = np.array(size, float) if self.relative else np.ones(2)
        rings = [ring * scale for ring in self.rings]
        low = np.floor(np.min([ring.min(axis=0) for ring in rings], axis=0)).clip(0, size)
        high = np.ceil(np.max([ring.max(axis=0) for ring in rings], axis=0)).clip(0, size)
        left, top, right, bottom = (int(value) for value in (*low, *high))
        if right <= left or bottom <= top:
            return Patch(np.zeros((0, 0), np.bool_))
        flat = [(ring - (left, top)).ravel().tolist() for ring in rings]
        runs = coco.merge(coco.frPyObjects(flat, bottom - top, right - left))
        return Patch(_decoded(runs), left, top)


@dataclass(frozen=True)
class Runs:
    """COCO's run lengths over the whole photo, columns first; compressed (text) or not."""

    size: Size
    counts: str | tuple[int, ...]

    def patch(self, size: Size) -> Patch:
        """Decode; raises ValueError if the runs are broken."""
        width, height = self.size
        counts = (
            coco_counts(self.counts)
            if isinstance(self.counts, str)
            else np.array(self.counts, np.int64)
        )
        pixels = from_alternating(counts, width * height).reshape(width, height).T
        return Patch(pixels).patch(size)


@dataclass(frozen=True)
class Later:
    """Pixels that are decoded when they are needed, so that only their code is kept."""

    read: Callable[[], Patch]

    def patch(self, size: Size) -> Patch:
        """Decode."""
        return self.read().patch(size)


@dataclass(frozen=True)
class Painted:
    """The pixels that have a colour or value in a mask file."""

    path: Path
    value: int  # red << 16 | green << 8 | blue where `by_color`
    by_color: bool

    def patch(self, size: Size) -> Patch:
        """Compare; the file is read once for all of its values."""
        return Patch(painted(self.path, by_color=self.by_color) == self.value).patch(size)


Shape = Patch | Outline | Runs | Later | Painted


@dataclass(frozen=True)
class Region:
    """A shape with its label; of two that overlap the higher `layer` is on top."""

    label: str
    shape: Shape
    layer: int = 0


@dataclass(frozen=True)
class Labelled:
    """One photo and its regions, as a tool's file has them."""

    photo: str  # its name or path in the file
    size: Size | None  # as the file declares it; None: it does not
    regions: tuple[Region, ...]  # in the order of the file
    split: str | None = None  # the tool's own
    content: Callable[[], bytes] | None = None  # the photo itself, where the file contains it
    problem: str = ""  # why the labels of this photo cannot be used


@dataclass
class Labels:
    """The content of a label file or folder."""

    photos: list[Labelled]
    names: tuple[str, ...] = ()  # the tool's own list of labels, in its order
    colors: dict[str, Color] = field(default_factory=dict)

    def all_names(self) -> tuple[str, ...]:
        """The tool's list, then labels that only occur in photos, sorted."""
        used = {region.label for photo in self.photos for region in photo.regions}
        return (*self.names, *sorted(used - {*self.names}))


def ring(numbers: Sequence[float], first_pixel: int = 0) -> Points:
    """(x, y, x, y, ...) as points; raises ValueError if it is no polygon."""
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"a polygon of {len(numbers)} numbers: at least 6, and x and y for each")
    points = np.asarray(numbers, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or np.abs(points).max() > 1e7:
        raise ValueError("a polygon with a corner at infinity")
    return points - first_pixel


def box(left: float, top: float, right: float, bottom: float, *, turn: float = 0.0) -> Points:
    """The corners of a rectangle, turned clockwise by degrees around its centre."""
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    return turned(corners, (left + right) / 2, (top + bottom) / 2, turn)


def ellipse(x: float, y: float, across: float, down: float, *, turn: float = 0.0) -> Points:
    """The outline of an ellipse with these radii, turned clockwise by degrees."""
    angles = np.linspace(0, 2 * math.pi, ARC, endpoint=False)
    points = np.stack([x + across * np.cos(angles), y + down * np.sin(angles)], axis=1)
    return turned(points, x, y, turn)


def turned(points: Points, x: float, y: float, degrees: float) -> Points:
    """Turn points clockwise (y points down) around (x, y)."""
    if not degrees:
        return points
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = points - (x, y)
    return np.asarray(moved @ np.array([(cos, sin), (-sin, cos)]) + (x, y))


def png_patch(png: bytes, left: int, top: int) -> Patch:
    """Decode a PNG whose pixels other than 0 are the region."""
    with Image.open(io.BytesIO(png)) as picture:
        return Patch(np.asarray(picture.convert("L")) > 0, left, top)


@lru_cache(maxsize=16)  # as many as threads draw at a time
def painted(path: Path, *, by_color: bool) -> NDArray[np.int32]:
    """The values or colours (H, W) of a mask file, see `Painted`. Raises AnnotationError."""
    try:
        with Image.open(path) as picture:
            if picture.format in ("JPEG", "MPO"):
                raise AnnotationError(f"{path} is a JPEG, which changes values; export it as PNG")
            if not by_color:
                return _values(path, picture)
            colors = np.asarray(picture.convert("RGB")).astype(np.int32)
    except (OSError, SyntaxError) as error:
        raise AnnotationError(f"{path} cannot be read: {error}") from None
    return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]


def _values(path: Path, picture: Image.Image) -> NDArray[np.int32]:
    if picture.mode not in ("P", "L", "1", "I", "I;16"):
        raise AnnotationError(f"{path} has mode {picture.mode}: colours, not numbers of classes")
    return np.asarray(picture).astype(np.int32)


def cropped(pixels: Mask) -> Patch:
    """The pixels within their bounding box; there must be at least one."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return Patch(pixels[top : rows[-1] + 1, left : columns[-1] + 1], left, top)


def _decoded(runs: dict[str, Any]) -> Mask:
    """Decode in NumPy: pycocotools 2.0 hands its arrays to NumPy 2 in a deprecated way."""
    height, width = runs["size"]
    counts = coco_counts(runs["counts"].decode("ascii"))
    return from_alternating(counts, width * height).reshape(width, height).T
