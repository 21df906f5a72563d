"""Convert a mask to polygons with holes, exact to the pixel.

Rings follow pixel edges in whole pixels, x to the right and y down, so that the area of a
polygon is its number of pixels. Each 4-connected region is one polygon. Pixels that touch
only at a corner need care: rings are traced so that such pixels stay apart, then cut where
a ring meets itself. The results are simple rings, as OGC Simple Features and RFC 7946
require.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from postprocess.errors import TooComplex
from postprocess.runs import Labels, Spread

MAX_CORNERS = 1_000_000  # of all classes of an answer; each is traced in Python

Ring = list[tuple[int, int]]  # (x, y) corners, the first repeated at the end
Polygon = list[Ring]  # the outer ring, then its holes

Mask = NDArray[np.bool_]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class _Corners:
    """The corners of all outlines. A point where two pixels touch diagonally is two corners."""

    x: Ints
    y: Ints
    following: Ints  # the next corner along the outline, with the region on the right
    vertical: Ints  # the other end of each corner's vertical edge
    falls: Mask  # whether that edge goes down from this corner


def polygons(mask: Mask, max_corners: int = MAX_CORNERS) -> list[Polygon]:
    """Return the polygons of a mask (H, W), each an outer ring and its holes.

    Raises TooComplex, before tracing, if they would have more than `max_corners` corners.
    """
    corners = _corners(mask, max_corners)
    walk_of, walks = _walks(corners)
    outlines: dict[int, Polygon] = {}
    holes: dict[int, list[Ring]] = {}
    for walk, rings in enumerate(walks):
        outer = [ring for ring in rings if signed_area(ring) > 0]
        inner = [ring for ring in rings if signed_area(ring) < 0]
        if outer:
            outlines[walk] = [*outer, *inner]
        else:
            holes[walk] = inner
    for walk, owner in _owners(corners, walk_of, holes, mask.shape[1]).items():
        outlines[owner] += holes[walk]
    return list(outlines.values())


def placed(shapes: list[Polygon], spread: Spread) -> list[Polygon]:
    """Turn the coordinates of a map's cells into those of the pixels that they stand for."""
    lefts, tops = spread.lefts.tolist(), spread.tops.tolist()
    return [[[(lefts[x], tops[y]) for x, y in ring] for ring in rings] for rings in shapes]


def of_class(labels: Labels, label: int, max_corners: int = MAX_CORNERS) -> list[Polygon]:
    """Return the polygons of a class in a map (R, C); only its bounding box is traced."""
    mask = labels == label
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x0, y0 = int(columns[0]), int(rows[0])
    shapes = polygons(mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1], max_corners)
    return [[[(x + x0, y + y0) for x, y in ring] for ring in rings] for rings in shapes]


def signed_area(ring: Ring) -> int:
    """Return the area in pixels, negative for holes."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) // 2


def count_corners(shapes: list[Polygon]) -> int:
    """Return the number of corners, without the repeated end of each ring."""
    return sum(len(ring) - 1 for rings in shapes for ring in rings)


def _check(corners: int, limit: int) -> None:
    if corners > limit:
        raise TooComplex(f"the polygons of all classes would have more than {MAX_CORNERS} corners")


def _corners(mask: Mask, max_corners: int) -> _Corners:
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    diagonal = (nw == se) & (ne == sw) & (nw != ne)
    y, x = np.nonzero((nw ^ ne ^ sw ^ se) | diagonal)
    twice = diagonal[y, x]
    _check(len(x) + int(twice.sum()), max_corners)
    at = np.repeat(np.arange(len(x)), np.where(twice, 2, 1))  # in order of rows
    first = np.diff(at, prepend=-1) > 0  # of a diagonal pair: the one with the edge to the left
    y, x, twice = y[at], x[at], twice[at]
    # Diagonal pixels stay apart: a pixel in the north-west joins the left edge with the upper one.
    lower = np.where(nw[y, x], ~first, first) & twice
    by_column = np.lexsort((lower, y, x))
    vertical = np.empty_like(by_column)
    vertical[by_column] = by_column.reshape(-1, 2)[:, ::-1].ravel()
    falls = np.zeros(len(x), np.bool_)
    falls[by_column[::2]] = True
    index = np.arange(len(x))
    # Above a region edges run to the right, on its right side they run down.
    right_end = index % 2 == 1
    goes_on = np.where(right_end, nw[y, x], se[y, x])  # whether the horizontal edge starts here
    return _Corners(x, y, np.where(goes_on, index ^ 1, vertical), vertical, falls)


def _walks(corners: _Corners) -> tuple[Ints, list[list[Ring]]]:
    """Follow every outline; return each corner's walk, and the simple rings of each walk."""
    following = corners.following.tolist()
    points = list(zip(corners.x.tolist(), corners.y.tolist(), strict=True))
    walk_of = [-1] * len(points)
    walks: list[list[Ring]] = []
    for start in range(len(points)):
        if walk_of[start] >= 0:
            continue
        path, corner = [], start
        while walk_of[corner] < 0:
            walk_of[corner] = len(walks)
            path.append(points[corner])
            corner = following[corner]
        walks.append(_simple_rings(path))
    return np.array(walk_of, np.intp), walks


def _simple_rings(path: Ring) -> list[Ring]:
    """Cut a closed path at every point that it visits twice."""
    rings: list[Ring] = []
    open_path: Ring = []
    position: dict[tuple[int, int], int] = {}
    for point in path:
        if point in position:
            begin = position[point]
            loop = open_path[begin:]
            for passed in loop[1:]:
                del position[passed]
            rings.append([*loop, point])
            del open_path[begin + 1 :]
        else:
            position[point] = len(open_path)
            open_path.append(point)
    return [*rings, [*open_path, open_path[0]]]


def _owners(
    corners: _Corners, walk_of: Ints, holes: dict[int, list[Ring]], width: int
) -> dict[int, int]:
    """Return the outer walk around each hole: the next outline to the left of the hole."""
    if not holes:
        return {}
    tops = np.flatnonzero(corners.falls)
    lengths = corners.y[corners.vertical[tops]] - corners.y[tops]
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = np.repeat(corners.y[tops], lengths) + offsets
    keys = rows * (width + 1) + np.repeat(corners.x[tops], lengths)
    order = np.argsort(keys)
    keys, walks = keys[order], np.repeat(walk_of[tops], lengths)[order]
    left_of = {}
    for walk, rings in holes.items():
        # A hole's leftmost edge has the region on its left.
        x, y = min(point for ring in rings for point in ring)
        before = np.searchsorted(keys, y * (width + 1) + x) - 1
        left_of[walk] = int(walks[before])
    return {walk: _outermost(walk, left_of) for walk in holes}


def _outermost(walk: int, left_of: dict[int, int]) -> int:
    while walk in left_of:
        walk = left_of[walk]
    return walk
