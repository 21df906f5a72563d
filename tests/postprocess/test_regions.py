"""Regions, small ones and holes against scipy.ndimage and a loop over pixels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from postprocess import runs
from postprocess.areas import Area, area
from postprocess.errors import InvalidOption, TooComplex
from postprocess.regions import Regions, without_holes, without_small
from postprocess.runs import Spread

Labels = NDArray[np.uint8]
MAPS = [
    pytest.param(
        np.random.default_rng(seed).integers(0, 2 + seed % 3, (3 + seed % 11, 2 + seed % 13)),
        marks=pytest.mark.slow if seed >= 8 else (),
    )
    for seed in range(40)
]


def enlarged(labels: Labels, spread: Spread) -> Labels:
    return labels.repeat(spread.heights, axis=0).repeat(spread.widths, axis=1)


def some_spread(shape: tuple[int, ...]) -> Spread:
    rng = np.random.default_rng(sum(shape))
    return Spread(rng.integers(1, 4, shape[0]), rng.integers(1, 4, shape[1]))


def regions_by_scipy(labels: Labels) -> list[tuple[int, NDArray[np.bool_]]]:
    """Class and mask of every region."""
    found = []
    for label in np.unique(labels):
        numbered, count = ndimage.label(labels == label)
        found += [(int(label), numbered == number + 1) for number in range(count)]
    return found


@pytest.mark.parametrize("labels", MAPS)
def test_regions_are_those_that_scipy_finds(labels: Labels) -> None:
    labels = labels.astype(np.uint8)
    spread = some_spread(labels.shape)
    found = Regions.of(labels, spread)
    expected: Counter[tuple[int, int, tuple[int, ...]]] = Counter()
    for label, where in regions_by_scipy(enlarged(labels, spread)):
        (rows, columns) = ndimage.find_objects(where.astype(int))[0]
        box = (columns.start, rows.start, columns.stop, rows.stop)
        expected[label, int(where.sum()), box] += 1
    boxes = [tuple(box) for box in found.boxes.tolist()]
    assert Counter(zip(found.labels.tolist(), found.areas.tolist(), boxes, strict=True)) == expected


def borders_by_loop(labels: Labels, where: NDArray[np.bool_]) -> Counter[tuple[int, int]]:
    """Return the pixels outside a region that its pixels touch, once for each contact."""
    touched: Counter[tuple[int, int]] = Counter()
    for y, x in zip(*np.nonzero(where), strict=True):
        for row, column in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]
            if inside and not where[row, column]:
                touched[row, column] += 1
    return touched


def without_small_by_loop(labels: Labels, smallest: int) -> Labels:
    found = regions_by_scipy(labels)
    settled = np.zeros(labels.shape, np.bool_)
    for _, where in found:
        settled |= where & (where.sum() >= smallest)
    if not settled.any():
        return labels
    labels, waiting = labels.copy(), [where for _, where in found if where.sum() < smallest]
    while waiting:
        chosen = []
        for where in waiting:
            votes: Counter[int] = Counter()
            for place, times in borders_by_loop(labels, where).items():
                if settled[place]:
                    votes[int(labels[place])] += times
            if votes:
                chosen.append((where, min(votes, key=lambda label: (-votes[label], label))))
        for where, label in chosen:
            labels[where] = label
            settled |= where
        done = [id(where) for where, _ in chosen]
        waiting = [where for where in waiting if id(where) not in done]
    return labels


@pytest.mark.parametrize("labels", MAPS)
@pytest.mark.parametrize("smallest", [2, 5, 12])
def test_small_regions_take_the_class_of_their_longest_border(
    labels: Labels, smallest: int
) -> None:
    labels = labels.astype(np.uint8)
    spread = some_spread(labels.shape)
    found = without_small(labels, Area(smallest), spread)
    expected = without_small_by_loop(enlarged(labels, spread), smallest)
    assert (enlarged(found, spread) == expected).all()


@pytest.mark.parametrize("labels", MAPS)
@pytest.mark.parametrize("most", [1, 6, 1000])
def test_holes_are_filled_where_one_class_surrounds_them(labels: Labels, most: int) -> None:
    labels = labels.astype(np.uint8)
    spread = some_spread(labels.shape)
    whole = enlarged(labels, spread)
    expected = whole.copy()
    for label, where in regions_by_scipy(whole):
        edge = where[0].any() or where[-1].any() or where[:, 0].any() or where[:, -1].any()
        around = {int(whole[place]) for place in borders_by_loop(whole, where)}
        if label == 0 and not edge and len(around) == 1 and where.sum() <= most:
            expected[where] = around.pop()
    found = without_holes(labels, Area(most), {0}, spread)
    assert (enlarged(found, spread) == expected).all()


def test_no_region_below_the_area_remains() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (90, 120)).astype(np.uint8)
    cleaned = without_small(labels, Area(12))
    areas = Regions.of(cleaned).areas
    assert len(areas) > 1
    assert areas.min() >= 12


def test_nothing_changes_where_every_region_is_small() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 12)).astype(np.uint8)
    assert (without_small(labels, Area(1000)) == labels).all()


def test_a_map_of_too_many_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array([[0, 1, 0, 1]], np.uint8)
    monkeypatch.setattr(runs, "MAX_RUNS", 4)
    assert Regions.of(labels).count == 4
    monkeypatch.setattr(runs, "MAX_RUNS", 3)
    with pytest.raises(TooComplex, match="4 runs"):
        Regions.of(labels)


@pytest.mark.parametrize(
    ("value", "pixels"),
    [(64, 64), ("64", 64), (0.001, 1), ("0.001", 1), (".5", 500), ("0.1%", 1), ("100%", 1000)],
)
def test_areas_are_pixels_or_shares(value: float | str, pixels: int) -> None:
    found = area("min_area", value)
    assert found is not None
    assert found.pixels(1000) == pixels


@pytest.mark.parametrize("value", [0, 0.0, "0", "0%", "0.0"])
def test_an_area_of_zero_turns_the_option_off(value: float | str) -> None:
    assert area("min_area", value) is None


@pytest.mark.parametrize(
    "value",
    [
        -1,
        1.5,
        1e9,
        float("nan"),
        float("inf"),
        "",
        "-1",
        "1.5",
        "101%",
        "a",
        "1e3",
        "٣",
        "5\n%",
        "5 %",
        None,
        True,
        [64],
    ],
)
def test_other_areas_are_refused_with_the_range(value: Any) -> None:
    with pytest.raises(InvalidOption, match=r"^min_area=.*from 1 to 999999999.*at most 100%"):
        area("min_area", value)
