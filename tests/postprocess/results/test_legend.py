"""Legends in overlays: their text, their place, and how much of the photo they cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from postprocess.results import legend
from postprocess.results.png import Rows

LARGE = pytest.param((4000, 3000), marks=pytest.mark.slow)

NAMES = ("background", "cat", "dining table", "Fußgängerüberweg", "猫", "two\nlines")


@dataclass(frozen=True)
class Facts:
    """The facts about a model that a legend needs."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    background: int | None = 0
    confidence: bool = False
    probability_grid: None = None
    calibration: None = None
    best_iou: None = None


def facts(count: int) -> Facts:
    names = tuple(f"class {number}" for number in range(count))
    colors = tuple((20 + number * 9 % 230, 255 - number * 7 % 200, 40) for number in range(count))
    return Facts(names, colors)


def drawn(
    labels: NDArray[np.uint8], shares: dict[int, float], about: Facts
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a grey picture with a legend, and which pixels changed."""
    picture = Image.new("RGB", labels.shape[::-1], (90, 90, 90))
    legend.draw(picture, Rows.of(labels), shares, about)
    pixels = np.asarray(picture)
    return pixels, (pixels != 90).any(axis=2)


@pytest.mark.parametrize("size", [(200, 133), (500, 375), LARGE, (64, 48), (1200, 90)])
@pytest.mark.parametrize("count", [1, 3, 20, 150])
def test_it_covers_little_of_the_photo_and_stays_inside(size: tuple[int, int], count: int) -> None:
    labels = np.zeros(size[::-1], np.uint8)
    shares = dict.fromkeys(range(1, count + 1), 0.9 / count)
    _, changed = drawn(labels, shares, facts(count + 1))
    if changed.any():
        rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
        covered = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
        assert covered <= legend.MOST_OF_PHOTO * labels.size
        assert rows[0] > 0
        assert columns[0] > 0
        assert rows[-1] < size[1] - 1
        assert columns[-1] < size[0] - 1
    assert changed.any() or min(size) < 60


@pytest.mark.parametrize("size", [(200, 133), (500, 375), LARGE])
def test_it_shows_the_colour_of_each_class(size: tuple[int, int]) -> None:
    about = facts(4)
    pixels, _ = drawn(np.zeros(size[::-1], np.uint8), {1: 0.3, 2: 0.2, 3: 0.1}, about)
    tops = [
        np.flatnonzero((pixels == about.palette[each]).all(axis=2).any(axis=1))
        for each in (1, 2, 3)
    ]
    assert all(len(top) >= 5 for top in tops)
    assert tops[0][-1] < tops[1][0] <= tops[1][-1] < tops[2][0]  # the largest first


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_it_lies_where_no_class_is(corner: tuple[int, int]) -> None:
    """Classes fill the photo but for one corner."""
    labels = np.ones((300, 400), np.uint8)
    down, right = corner
    labels[150 * down : 150 + 150 * down, 200 * right : 200 + 200 * right] = 0
    _, changed = drawn(labels, {1: 0.75}, facts(2))
    assert changed.any()
    assert not labels[changed].any()


def test_letters_that_the_font_lacks_are_written_otherwise() -> None:
    shown = [legend.drawable(name, label) for label, name in enumerate(NAMES)]
    assert shown == ["background", "cat", "dining table", "class 3", "class 4", "class 5"]
    assert legend.drawable("café Zürich", 7) == "cafe Zurich"
    assert legend.drawable("", 7) == "class 7"


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.5351, "54 %"), (0.0996, "10 %"), (0.0351, "3.5 %"), (0.001, "0.1 %")],
)
def test_shares_are_rounded(share: float, text: str) -> None:
    assert legend.percent(share) == text
    assert legend.percent(0.0009) == "< 0.1 %"


def test_rows_without_room_are_counted() -> None:
    rows = [legend.Row(f"class {number}", "5 %", (1, 2, 3)) for number in range(40)]
    shown = legend.Layout(11).fitting(rows, (300, 200))
    assert 1 < len(shown) < 40
    assert shown[-1].text == f"+ {40 - len(shown) + 1} more"
    assert shown[:-1] == rows[: len(shown) - 1]
    long = legend.Layout(11).fitting([legend.Row("a" * 300, "5 %", (1, 2, 3))], (300, 200))
    assert long[0].name.endswith("a…")
    assert long[0].share == "5 %"
