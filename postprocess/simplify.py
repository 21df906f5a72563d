"""Simplify the polygons of a label map; neighbours keep their common border.

The outlines are cut into arcs at the points where three or more regions meet. Each arc is
simplified once (Douglas and Peucker, 1973) and belongs to the polygons on both sides, so there is
no gap and no overlap between them.

An arc may still cross another one. So all polygons of the map are checked, including those of
the background. In an invalid polygon, the arcs that cross or touch another one and the arcs of
collapsed rings get half the tolerance, down to the exact outline; if no arc can be blamed, all
arcs of the polygon do. This is enough: the arcs between two polygons cancel out, so at every point
the winding numbers of all polygons add up to 1, and if each polygon is valid and turns the right
way, each winding number is 0 or 1. Exactly one polygon then covers each point.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from postprocess.outlines import Polygon, Ring
from postprocess.runs import Floats, Ints, Labels, Spread

MOST_SUSPECTS = 5000  # arcs to compare; more occur only in noise, and would take seconds
MOST_ATTEMPTS = 16  # with single arcs; after them, all arcs of an invalid polygon are changed
FINEST = 0.25  # pixels; below this tolerance an arc stays exact: corners are whole pixels


Lines = NDArray[np.object_]  # of shapely.LineString


@dataclass(frozen=True)
class _Arcs:
    """The arcs of all rings, in the order in which the rings pass them."""

    points: Floats  # (P, 2) x, y of the different arcs, one after another
    arc_of_point: Ints  # (P,)
    passed: Ints  # the arcs that the rings pass
    backwards: NDArray[np.bool_]  # whether the ring passes it from its end
    ring: Ints  # the ring that passes it


def simplified(
    shapes: Mapping[int, list[Polygon]],
    labels: Labels,
    tolerance: float,
    spread: Spread | None = None,
) -> dict[int, list[Polygon]]:
    """Simplify the polygons of all classes of a map (R, C).

    `shapes`: every class in `labels` with its exact polygons, in cells, as `outlines.of_class`
    gives them. The result is in pixels. No point of an outline is farther than `tolerance`
    pixels from the new outline. The corners are points of the exact polygons, and polygons at
    the edge of the map end there.
    """
    flat = [polygon for polygons in shapes.values() for polygon in polygons]
    rings = [ring for polygon in flat for ring in polygon]
    polygon_of_ring = np.repeat(np.arange(len(flat)), [len(polygon) for polygon in flat])
    is_outer = np.diff(polygon_of_ring, prepend=-1) > 0
    arcs = _arcs(rings, labels, spread or Spread.none(labels.shape))
    tolerances = np.full(int(arcs.arc_of_point[-1]) + 1, float(tolerance))
    for attempt in itertools.count():
        lines = _simple_lines(arcs, tolerances)
        points, ring = _joined_again(arcs, lines)
        collapsed = _turned(points, ring, is_outer)
        bad = _invalid(points, ring, polygon_of_ring, collapsed)
        if not bad.any():
            break
        worse = np.unique(arcs.passed[bad[polygon_of_ring[arcs.ring]]])
        if attempt < MOST_ATTEMPTS and len(worse) <= MOST_SUSPECTS:
            worse = _to_blame(arcs, lines, worse[tolerances[worse] > 0], collapsed)
        tolerances[worse] = np.where(tolerances[worse] > FINEST, tolerances[worse] / 2, 0)
    found = iter(_closed(points, ring))
    return {
        label: [[next(found) for _ in polygon] for polygon in polygons]
        for label, polygons in shapes.items()
    }


def _arcs(rings: list[Ring], labels: Labels, spread: Spread) -> _Arcs:
    """Cut the rings at their nodes, and find the arcs that two rings have in common."""
    wide = labels.shape[1] + 1
    ring = np.repeat(np.arange(len(rings)), [len(each) - 1 for each in rings])
    corners = np.concatenate([np.array(each[:-1], np.int64) for each in rings])
    points, ring = _with_nodes_between(corners, ring, labels)
    keys = points[:, 1] * wide + points[:, 0]
    cut = _cuts(points, keys, ring, np.isin(keys, _nodes(labels)))
    order = _from_a_cut(ring, cut)
    points, keys, ring, cut = points[order], keys[order], ring[order], cut[order]
    firsts = np.flatnonzero(cut)
    begins = np.diff(ring, prepend=-1) > 0
    ends = np.append(firsts[1:], len(points))  # the last point of an arc begins the next one,
    ring_start = np.maximum.accumulate(np.where(begins, np.arange(len(points)), 0))[firsts]
    last_of_ring = np.append(ring[firsts][1:] != ring[firsts][:-1], True)
    ends = np.where(last_of_ring, ring_start, ends)  # or is the first point of the ring
    lengths = np.diff(np.append(firsts, len(points))) + 1
    at = np.repeat(firsts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    at[np.cumsum(lengths) - 1] = ends
    pixels = np.stack([spread.lefts[points[:, 0]], spread.tops[points[:, 1]]], axis=1)
    return _shared(pixels[at], keys[at], lengths, ring[firsts])


def _shared(points: Ints, keys: Ints, lengths: Ints, ring: Ints) -> _Arcs:
    """Give each arc one direction, and keep one of two that are the same."""
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    backwards = keys[first] > keys[last]
    step = np.repeat(np.where(backwards, -1, 1), lengths)
    offset = np.arange(len(points)) - np.repeat(first, lengths)
    at = np.repeat(np.where(backwards, last, first), lengths) + step * offset
    # An arc is known by its first two points: no two leave a point along the same edge.
    pairs = np.stack([keys[at[first]], keys[at[first + 1]]], axis=1)
    _, kept, passed = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    arc = np.repeat(np.arange(len(lengths)), lengths)
    chosen = np.zeros(len(lengths), np.bool_)
    chosen[kept] = True
    # The arcs stay in their order, so they are numbered by it.
    number = np.cumsum(chosen) - 1
    of_point = chosen[arc]
    return _Arcs(
        points[at][of_point].astype(np.float64),
        number[arc[of_point]],
        number[kept][passed.ravel()],
        backwards,
        ring,
    )


def _nodes(labels: Labels) -> Ints:
    """The points where at least three borders meet, and the corners of the map, as keys."""
    padded = np.pad(labels.astype(np.int16), 1, constant_values=-1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    borders = (nw != ne).astype(np.uint8) + (sw != se) + (nw != sw) + (ne != se)
    is_node = borders >= 3
    is_node[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    return np.flatnonzero(is_node)  # y * (width + 1) + x


def _with_nodes_between(corners: Ints, ring: Ints, labels: Labels) -> tuple[Ints, Ints]:
    """Add the nodes on the straight edges of the rings as separate points."""
    height, width = labels.shape
    nodes = _nodes(labels)
    x, y = nodes % (width + 1), nodes // (width + 1)
    following = _next(ring)
    ahead = corners[following]
    is_flat = corners[:, 1] == ahead[:, 1]
    found = np.empty((2, len(corners)), np.int64)
    by_column = np.argsort(x * (height + 1) + y, kind="stable")
    for flat, keys in ((True, nodes), (False, (x * (height + 1) + y)[by_column])):
        at, along, size = (1, 0, width + 1) if flat else (0, 1, height + 1)
        low = np.minimum(corners[:, along], ahead[:, along]) + corners[:, at] * size
        high = np.maximum(corners[:, along], ahead[:, along]) + corners[:, at] * size
        span = np.searchsorted(keys, low, "right"), np.searchsorted(keys, high, "left")
        found[:, is_flat == flat] = np.stack(span)[:, is_flat == flat]
    begin, end = found
    more = np.maximum(end - begin, 0)
    total = more + 1
    source = np.repeat(np.arange(len(corners)), total)
    rank = np.arange(len(source)) - np.repeat(np.cumsum(total) - total, total)  # 0: the corner
    backwards = np.any(ahead < corners, axis=1)[source]
    index = np.where(backwards, end[source] - rank, begin[source] + rank - 1)
    index = np.clip(index, 0, len(nodes) - 1)
    node = np.where(is_flat[source], index, by_column[index])
    points = np.where((rank == 0)[:, None], corners[source], np.stack([x, y], 1)[node])
    return points, ring[source]


def _next(ring: Ints) -> Ints:
    """Return the index of the next point along each ring."""
    following = np.arange(1, len(ring) + 1)
    last = np.flatnonzero(np.diff(ring, append=-1))
    following[last] = np.concatenate([[0], last[:-1] + 1])
    return following


def _cuts(points: Ints, keys: Ints, ring: Ints, is_node: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where to cut: at nodes, and at least at two points of every ring.

    A ring without a node is cut at its first point (row by row), a ring with at most one node
    also at the point that is farthest away. The polygons on both sides choose the same points.
    """
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    count = np.add.reduceat(is_node, starts, dtype=np.int64)
    cut = is_node.copy()
    lowest = np.minimum.reduceat(keys, starts)
    cut |= (keys == lowest[ring]) & (count == 0)[ring]
    few = count <= 1
    origin = np.zeros((len(starts), 2), np.int64)
    origin[ring[cut]] = points[cut]  # the cut of rings with only one
    distance = ((points - origin[ring]) ** 2).sum(axis=1)
    farthest = distance == np.maximum.reduceat(distance, starts)[ring]
    first = np.minimum.reduceat(np.where(farthest, keys, keys.max() + 1), starts)
    return np.asarray(cut | ((keys == first[ring]) & few[ring]))


def _from_a_cut(ring: Ints, cut: NDArray[np.bool_]) -> Ints:
    """Return the order of the points in which every ring begins at a cut."""
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    lengths = np.diff(starts, append=len(ring))
    first = np.minimum.reduceat(np.where(cut, np.arange(len(ring)), len(ring)), starts)
    place = np.arange(len(ring)) - starts[ring]
    return starts[ring] + (place + (first - starts)[ring]) % lengths[ring]


def _simple_lines(arcs: _Arcs, tolerances: Floats) -> Lines:
    """Simplify every arc."""
    lines = shapely.linestrings(arcs.points, indices=arcs.arc_of_point)
    simple: Lines = shapely.simplify(lines, tolerances, preserve_topology=False)
    return simple


def _joined_again(arcs: _Arcs, lines: Lines) -> tuple[Ints, Ints]:
    """Join the simplified arcs to rings; return the points, and the ring of each."""
    points, arc = shapely.get_coordinates(lines, return_index=True)
    first = np.searchsorted(arc, np.arange(len(lines)))
    lengths = (np.diff(first, append=len(arc)) - 1)[arcs.passed]  # the next arc has the last point
    begin = np.where(arcs.backwards, first[arcs.passed] + lengths, first[arcs.passed])
    step = np.repeat(np.where(arcs.backwards, -1, 1), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.repeat(begin, lengths) + step * offset
    return points[at].astype(np.int64), np.repeat(arcs.ring, lengths)


def _turned(points: Ints, ring: Ints, is_outer: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether each ring has collapsed, or turns the wrong way."""
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    ahead = points[_next(ring)]
    area = np.add.reduceat(points[:, 0] * ahead[:, 1] - ahead[:, 0] * points[:, 1], starts)
    return np.where(is_outer, area <= 0, area >= 0)


def _invalid(
    points: Ints, ring: Ints, polygon_of_ring: Ints, collapsed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return whether each polygon is invalid, or has a collapsed ring."""
    bad = np.zeros(polygon_of_ring[-1] + 1, np.bool_)
    bad[polygon_of_ring[collapsed]] = True
    whole = ~bad[polygon_of_ring]
    if whole.any():
        number = np.cumsum(whole) - 1
        kept = whole[ring]
        rings = shapely.linearrings(points[kept].astype(np.float64), indices=number[ring[kept]])
        owners, index = np.unique(polygon_of_ring[whole], return_inverse=True)
        bad[owners] = ~shapely.is_valid(shapely.polygons(rings, indices=index))
    return bad


def _to_blame(arcs: _Arcs, lines: Lines, suspects: Ints, collapsed: NDArray[np.bool_]) -> Ints:
    """Return the suspected arcs that make polygons invalid, or all of them if none stands out."""
    blamed = np.zeros(len(lines), np.bool_)
    blamed[arcs.passed[collapsed[arcs.ring]]] = True
    blamed[_crossing(lines, suspects)] = True
    found = suspects[blamed[suspects]]
    return found if len(found) else suspects


def _crossing(lines: Lines, suspects: Ints) -> Ints:
    """Return the suspects that cross themselves, or touch another arc but at a common end."""
    tree = shapely.STRtree(lines)
    one, other = tree.query(lines[suspects], predicate="intersects")
    one = suspects[one]
    one, other = one[one != other], other[one != other]
    first, last = shapely.get_point(lines, 0), shapely.get_point(lines, -1)
    ends = np.stack([shapely.get_coordinates(first), shapely.get_coordinates(last)], axis=1)
    same = (ends[one][:, :, None] == ends[other][:, None, :]).all(axis=3)  # (pairs, 2, 2)
    common = same.any(axis=2).sum(axis=1)
    contact = shapely.intersection(lines[one], lines[other])
    crosses = (shapely.get_dimensions(contact) > 0) | (
        shapely.get_num_coordinates(contact) > common
    )
    return np.concatenate([one[crosses], suspects[~shapely.is_simple(lines[suspects])]])


def _closed(points: Ints, ring: Ints) -> list[Ring]:
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    pairs = list(zip(points[:, 0].tolist(), points[:, 1].tolist(), strict=True))
    ends = [*starts[1:].tolist(), len(pairs)]
    return [
        [*pairs[begin:end], pairs[begin]] for begin, end in zip(starts.tolist(), ends, strict=True)
    ]
