"""Simplified polygons are valid, share borders and keep the tolerance; shapely checks it."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from postprocess.outlines import Polygon, polygons
from postprocess.simplify import simplified

Labels = NDArray[np.uint8]


def exact(labels: Labels) -> dict[int, list[Polygon]]:
    return {int(label): polygons(labels == label) for label in np.unique(labels)}


def shapes(found: dict[int, list[Polygon]]) -> list[shapely.Polygon]:
    return [shapely.Polygon(rings[0], rings[1:]) for each in found.values() for rings in each]


def corners(found: dict[int, list[Polygon]]) -> int:
    return sum(len(ring) - 1 for each in found.values() for rings in each for ring in rings)


def check(labels: Labels, tolerance: float) -> None:
    before, after = shapes(exact(labels)), shapes(simplified(exact(labels), labels, tolerance))
    for shape in after:
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.exterior.is_ccw
        assert not any(hole.is_ccw for hole in shape.interiors)
    assert shapely.coverage_is_valid(after)
    assert sum(shape.area for shape in after) == labels.size
    assert shapely.union_all(after).area == labels.size
    for old, new in zip(before, after, strict=True):
        assert new.hausdorff_distance(old) <= tolerance + 1e-9
        assert set(shapely.get_coordinates(new).flat) <= set(range(max(labels.shape) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.5, 1, 2, 8])
@pytest.mark.parametrize("size", [1, 3])
def test_random_maps_stay_a_partition_within_the_tolerance(tolerance: float, size: int) -> None:
    rng = np.random.default_rng(round(10 * tolerance) + size)
    for _ in range(25):
        shape = tuple(rng.integers(1, 18, 2))
        labels = rng.integers(0, rng.integers(1, 5), shape).astype(np.uint8)
        check(np.kron(labels, np.ones((size, size), np.uint8)), tolerance)


def test_a_staircase_becomes_a_straight_line() -> None:
    y, x = np.mgrid[:60, :60]
    labels = (x > y).astype(np.uint8)
    found = simplified(exact(labels), labels, 1)
    assert corners(exact(labels)) > 200
    assert corners(found) <= 8
    check(labels, 1)


def test_an_island_near_an_outline_stays_inside_of_its_region() -> None:
    """A straight edge of the region would pass on the other side of the island."""
    labels = np.zeros((20, 40), np.uint8)
    labels[4:, 5:35] = 1
    labels[2:4, 15:25] = 1  # a bump of two pixels, with an island in it
    labels[3, 19:21] = 2
    check(labels, 4)


def test_corners_of_the_map_stay_where_they_are() -> None:
    labels = np.zeros((12, 9), np.uint8)
    (polygon,) = simplified(exact(labels), labels, 50)[0]
    assert sorted(polygon[0][:-1]) == [(0, 0), (0, 12), (9, 0), (9, 12)]


def test_specks_do_not_spoil_the_outlines_around_them() -> None:
    """A region of one pixel cannot be simplified, but the large border in whose polygon it lies."""
    down, across = np.mgrid[:200, :200] - 99.5
    plain = (np.hypot(down, across) < 80).astype(np.uint8)
    specks = plain.copy()
    specks[10:195:23, 8:195:17] = 2
    check(specks, 2)
    disc, spotted = (
        len(simplified(exact(labels), labels, 2)[1][0][0]) for labels in (plain, specks)
    )
    assert disc < len(exact(plain)[1][0][0]) / 10
    assert spotted <= 2 * disc
