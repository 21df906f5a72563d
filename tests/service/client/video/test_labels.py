from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.client.video.labels import Paint, Steady, majority


def slowest(maps: list[NDArray[np.uint8]], own: int) -> NDArray[np.uint8]:
    """The majority, pixel by pixel."""
    result = maps[own].copy()
    for place in np.ndindex(*result.shape):
        counts = np.bincount([each[place] for each in maps], minlength=256)
        if counts.max() > counts[maps[own][place]]:
            result[place] = next(
                each[place] for each in maps if counts[each[place]] == counts.max()
            )
    return result


@pytest.mark.parametrize("count", [1, 2, 5])
def test_majority_is_that_of_a_loop_over_pixels(count: int) -> None:
    maps = list(np.random.default_rng(count).integers(0, 3, (count, 9, 7), np.uint8))
    for own in range(count):
        assert (majority(maps, own) == slowest(maps, own)).all()


def test_the_frame_itself_decides_a_tie() -> None:
    maps = [np.array([[value]], np.uint8) for value in (7, 9, 7, 9, 5)]
    assert majority(maps, 1)[0, 0] == 9
    assert majority(maps, 2)[0, 0] == 7


@pytest.mark.parametrize("window", [1, 3, 5, 9])
@pytest.mark.parametrize("count", [0, 1, 4, 12])
def test_every_frame_has_the_majority_around_it_in_order(window: int, count: int) -> None:
    maps = list(np.random.default_rng(0).integers(0, 3, (count, 4, 5), np.uint8))
    steady: Steady[int] = Steady(window)
    found = [each for number, labels in enumerate(maps) for each in steady.add(number, labels)]
    found += steady.rest()
    assert [number for number, _ in found] == list(range(count))
    for number, labels in found:
        first = max(0, number - window // 2)
        near = maps[first : number + window // 2 + 1]
        assert (labels == slowest(near, number - first)).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_an_overlay_blends_what_is_shown_and_leaves_the_rest(alpha: float) -> None:
    rng = np.random.default_rng(1)
    photo = rng.integers(0, 256, (20, 30, 3), np.uint8)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (20, 30))
    palette = ((10, 20, 30), (255, 0, 0), (0, 255, 255))
    found = Paint(palette, frozenset({0})).overlaid(photo, labels, alpha)
    for place in np.ndindex(20, 30):
        label = labels[place]
        color = np.array(palette[label]) if label in {1, 2} else photo[place]
        expected = photo[place] * (1 - alpha) + color * alpha
        assert np.abs(found[place] - expected).max() <= 1.5
