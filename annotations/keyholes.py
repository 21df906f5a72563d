"""Write polygons with holes as single rings, because label tools have no holes.

Each hole is joined to the ring around it by a cut of no width, there and back. By the even-odd
rule the pixels are the same. The cut runs along a row to the left, from the hole's leftmost
corner to what it meets first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Corner = tuple[float, float]


def keyholed(rings: Sequence[Sequence[Corner]]) -> list[Corner]:
    """Join an outer ring and its holes, each closed, into one ring; its end is not repeated.

    Holes are joined from left to right: what lies to the left of one is already in the ring.
    """
    outer, *holes = rings
    joined = list(outer[:-1])
    for hole in sorted(holes, key=min):
        joined = _with_hole(joined, list(hole[:-1]))
    return joined


def _with_hole(ring: list[Corner], hole: list[Corner]) -> list[Corner]:
    first = hole.index(min(hole))
    loop = [*hole[first:], *hole[:first]]
    at, meeting = _left_of(ring, loop[0])
    cut = [meeting, *loop, loop[0], meeting]
    return [*ring[: at + 1], *cut, *ring[at + 1 :]]


def _left_of(ring: list[Corner], corner: Corner) -> tuple[int, Corner]:
    """Return the start of the ring's edge that a ray to the left meets first, and the place."""
    x, y = corner
    points = np.array(ring, np.float64)
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    level = y0 == y1
    meets = x0 + (y - y0) * (x1 - x0) / np.where(level, 1, y1 - y0)
    meets[level] = np.where(np.minimum(x0, x1) <= x, np.minimum(np.maximum(x0, x1), x), np.inf)[
        level
    ]
    crosses = (np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1)) & (meets <= x)
    if not crosses.any():  # a hole outside its ring, which `postprocess.outlines` never returns
        raise ValueError(f"the hole at ({x:g}, {y:g}) has nothing to its left")
    at = int(np.where(crosses, meets, -np.inf).argmax())
    found = float(meets[at])
    return at, (int(found) if found.is_integer() else found, y)
