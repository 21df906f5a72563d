"""Probabilities of all classes at the network's own resolution, and where they lie on the photo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from postprocess.runs import Floats

Placing = Literal["corners", "centres"]
Probabilities = NDArray[np.uint8]  # (K, h, w), times 255


@dataclass(frozen=True)
class Grid:
    """Probabilities on a regular grid of points of the photo.

    Coordinates are those of polygons: pixel (0, 0) reaches from 0 to 1, its centre is 0.5.
    """

    values: Probabilities
    origin: tuple[float, float]  # (x, y) of the first point
    step: tuple[float, float]  # (x, y) to the next one

    @classmethod
    def of(
        cls,
        values: Probabilities,
        placing: Placing,
        input_size: tuple[int, int],
        valid: tuple[int, int],
        photo: tuple[int, int],
    ) -> Grid:
        """Cut out the photo's part of what a network gave for an input of `input_size` (H, W).

        `placing`: corners if the first and the last pixels of the input have a point; centres if
        each point is in the middle of its block. `valid`: (H, W) of the photo's part of the
        input. `photo`: its own size (W, H).
        """
        rows = _axis(values.shape[1], placing, input_size[0], valid[0], photo[1])
        columns = _axis(values.shape[2], placing, input_size[1], valid[1], photo[0])
        return cls(
            np.ascontiguousarray(values[:, : rows[2], : columns[2]]),
            (columns[0], rows[0]),
            (columns[1], rows[1]),
        )

    def scaled(self, size: tuple[int, int], to: tuple[int, int]) -> Grid:
        """Return the grid on the photo of `size` (W, H) resized `to` another size."""
        x, y = to[0] / size[0], to[1] / size[1]
        origin, step = self.origin, self.step
        return Grid(self.values, (origin[0] * x, origin[1] * y), (step[0] * x, step[1] * y))

    def within(self, box: tuple[float, float, float, float]) -> Grid:
        """Return the points in and next to a part of the photo: left, top, right, bottom."""
        sides = zip(self.origin, self.step, box[:2], box[2:], self.values.shape[:0:-1], strict=True)
        (left, right), (top, bottom) = (
            _near(first, step, start, end, points) for first, step, start, end, points in sides
        )
        x, y = self.origin[0] + left * self.step[0], self.origin[1] + top * self.step[1]
        return Grid(self.values[:, top:bottom, left:right], (x, y), self.step)

    @property
    def transform(self) -> Floats:
        """(2, 3): (x, y) of the photo = transform @ (column, row, 1) of the grid."""
        (x, y), (right, down) = self.origin, self.step
        return np.array([[right, 0, x], [0, down, y]])


def _axis(
    points: int, placing: Placing, side: int, valid: int, photo: int
) -> tuple[float, float, int]:
    """Return origin and step on the photo, and the number of points on the photo."""
    if placing == "corners":
        first, step = 0.5, (side - 1) / max(1, points - 1)
    else:
        first, step = side / points / 2, side / points
    inside = 1 + int((valid - 0.5 - first) / step + 1e-9) if step else 1
    scale = photo / valid
    return first * scale, step * scale, max(1, min(points, inside))


def _near(first: float, step: float, start: float, end: float, points: int) -> tuple[int, int]:
    """Return the range of points that interpolation between two places reads."""
    near = int((start - first) // step) - 1, int((end - first) // step) + 3
    return min(max(0, near[0]), points - 1), max(1, min(points, near[1]))


def top(values: Probabilities, count: int) -> tuple[Probabilities, Probabilities]:
    """Return the `count` most probable classes and their probabilities, each (count, h, w).

    Of equal probabilities the class with the lower id comes first.
    """
    order = np.argsort(255 - values, axis=0, kind="stable")[:count].astype(np.uint8)
    return order, np.take_along_axis(values, order, axis=0)


def sets(values: Probabilities, least: int) -> NDArray[np.uint8]:
    """Return the set of classes with at least this probability (times 255): (B, h, w).

    It is a bit field: class k is bit k % 8 of byte k // 8. The most probable class is always in it.
    """
    likely = (values >= least) | (values == values.max(axis=0))
    return np.packbits(likely, axis=0, bitorder="little")


def least_for(coverage: float, missed: tuple[float, ...], photos: int) -> int | None:
    """Return the highest threshold whose sets contain the truth in a share `coverage` of pixels.

    `missed`: for each threshold the mean share of pixels, over `photos` photos, whose truth is
    not in the set. The guarantee is for the mean of a further photo like these, so one photo with
    only misses is added (conformal risk control, Angelopoulos et al. 2022, theorem 1).
    None if there are too few photos for the guarantee.
    """
    bounds = (photos * np.array(missed) + 1) / (photos + 1)
    kept = np.flatnonzero(bounds <= 1 - coverage)
    return int(kept[-1]) if len(kept) else None
