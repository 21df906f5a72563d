"""Outlines are valid, exact polygons, whatever the mask; shapely is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from postprocess.errors import TooComplex
from postprocess.outlines import MAX_CORNERS, count_corners, polygons, signed_area

Mask = NDArray[np.bool_]


def mask(*rows: str) -> Mask:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def shapes(pixels: Mask) -> list[shapely.Polygon]:
    return [shapely.Polygon(rings[0], rings[1:]) for rings in polygons(pixels)]


def check(pixels: Mask) -> None:
    found = shapes(pixels)
    for shape in found:
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.exterior.is_ccw
        assert not any(hole.is_ccw for hole in shape.interiors)
    y, x = np.nonzero(pixels)
    squares = shapely.union_all(shapely.box(x, y, x + 1, y + 1))
    assert sum(shape.area for shape in found) == pixels.sum()
    assert shapely.union_all(found).symmetric_difference(squares).area == 0


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.6, 0.8, 0.95])
def test_random_masks_become_valid_polygons_of_the_same_pixels(density: float) -> None:
    rng = np.random.default_rng(round(100 * density))
    for _ in range(60):
        check(rng.random(tuple(rng.integers(1, 20, 2))) < density)


@pytest.mark.parametrize(
    ("pixels", "holes"),
    [
        (mask("."), []),
        (mask("#"), [0]),
        (mask("#.", ".#"), [0, 0]),  # apart: they touch at a corner only
        (mask(".##", "#.#", "###"), [1]),  # a hole that meets the outside at a corner
        (mask("#####", "#.#.#", "##.##", "#####"), [3]),  # holes that meet at corners
        (mask("#####", "#...#", "#.#.#", "#...#", "#####"), [1, 0]),  # an island in a lake
    ],
)
def test_holes_belong_to_the_region_around_them(pixels: Mask, holes: list[int]) -> None:
    check(pixels)
    assert [len(shape.interiors) for shape in shapes(pixels)] == holes


def test_a_rectangle_has_four_corners() -> None:
    ((ring,),) = polygons(np.ones((300, 400), np.bool_))
    assert ring == [(0, 0), (400, 0), (400, 300), (0, 300), (0, 0)]
    assert signed_area(ring) == 120_000


def test_corners_are_limited_before_tracing() -> None:
    """A chessboard of 8 pixels has 32 corners: a limit of 32 allows it, 31 is a 413."""
    board = np.indices((4, 4)).sum(axis=0) % 2 == 0
    assert count_corners(polygons(board, 32)) == 32
    with pytest.raises(TooComplex, match="more than"):
        polygons(board, 31)


@pytest.mark.slow
def test_noise_of_nine_megapixels_is_refused() -> None:
    """By default a mask may have 1,000,000 corners; such noise has several millions."""
    assert MAX_CORNERS == 1_000_000
    noise = np.random.default_rng(0).random((3000, 3000)) < 0.5
    with pytest.raises(TooComplex):
        polygons(noise)
