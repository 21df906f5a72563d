"""Edge-aware enlargement against loops, and on a photo whose edge is known."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from postprocess import smooth
from postprocess.grid import Grid
from postprocess.smooth import Guide, box_sum, candidates, enlarged, largest, smooth_labels

BILINEAR = Image.Resampling.BILINEAR


def ramp(step: float = 4.0) -> Grid:
    """Probabilities of two classes that change from left to right."""
    right = np.linspace(0, 255, 17).round().astype(np.uint8)
    values = np.stack([255 - right, right])[:, None, :].repeat(12, axis=1)
    return Grid(np.ascontiguousarray(values), (0.5, 0.5), (step, step))


def test_only_the_largest_classes_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array([[3, 3, 3, 7, 7, 1]], np.uint8)
    assert candidates(labels) == [1, 3, 7]
    monkeypatch.setattr(smooth, "MOST_CLASSES", 2)
    assert candidates(labels) == [3, 7]


def test_box_sums_count_what_is_inside() -> None:
    plane = np.random.default_rng(0).random((9, 13)).astype(np.float32)
    ours = box_sum(plane, 3)
    padded = np.pad(plane, 3)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7))
    assert np.allclose(ours, windows.sum(axis=(2, 3)), atol=1e-4)


def test_probabilities_are_interpolated_between_the_points() -> None:
    """The grid's points lie 4 pixels apart, the first in the middle of the first pixel."""
    grid = ramp()
    found = enlarged(grid, 1, (65, 45), (0, 0, 65, 45))
    x = np.clip(np.arange(65) / 4, 0, 16)
    expected = np.interp(x, np.arange(17), grid.values[1, 0] / 255)
    assert np.abs(found - expected).max() < 1e-3
    half = enlarged(grid, 1, (32, 22), (0, 0, 65, 45))  # the same place in a smaller photo
    places = (np.arange(32) + 0.5) * 65 / 32
    assert np.abs(half - np.interp(places - 0.5, np.arange(65), expected)).max() < 0.02


def test_a_border_moves_to_the_edge_of_the_photo() -> None:
    """By the probabilities alone it is at x = 32; the photo's edge is four pixels to the right."""
    grid = ramp()
    photo = np.zeros((45, 65, 3), np.uint8)
    photo[:, 36:] = 230
    labels = smooth_labels(grid, [0, 1], photo, (65, 45))
    borders = (labels[:, 1:] != labels[:, :-1]).argmax(axis=1) + 1
    assert (abs(borders - 36) <= 1).all()
    flat = smooth_labels(grid, [0, 1], np.full_like(photo, 90), (65, 45))
    assert (abs((flat[:, 1:] != flat[:, :-1]).argmax(axis=1) + 1 - 33) <= 1).all()


def test_a_large_photo_gets_no_stairs() -> None:
    """A slanted border: repeated labels would leave steps of eight pixels."""
    y, x = np.mgrid[:30, :40]
    chance = np.clip(127 + 20 * (x - 0.6 * y - 8), 0, 255).astype(np.uint8)
    grid = Grid(np.stack([255 - chance, chance]), (16.0, 16.0), (32.0, 32.0))
    guide = np.full((120, 160, 3), 128, np.uint8)
    labels = smooth_labels(grid, [0, 1], guide, (1280, 960))
    borders = np.array([row.argmax() for row in labels[200:600]])
    assert np.abs(np.diff(borders)).max() <= 2
    slope = np.polyfit(np.arange(200, 600), borders, 1)[0]
    assert slope == pytest.approx(0.6, abs=0.05)


def test_the_guided_filter_is_the_papers() -> None:
    """Against the formulas of the paper with scipy's mean, away from the edges."""
    rng = np.random.default_rng(0)
    grey, plane = (rng.random((40, 50)).astype(np.float32) for _ in range(2))
    radius, epsilon = 4, 0.01

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(ndimage.uniform_filter(values.astype(np.float64), 2 * radius + 1))

    slope = (mean(grey * plane) - mean(grey) * mean(plane)) / (
        mean(grey * grey) - mean(grey) ** 2 + epsilon
    )
    expected = mean(slope) * grey + mean(mean(plane) - slope * mean(grey))
    (ours_slope,), (offset,) = Guide(grey, radius, epsilon).functions(plane[None])
    ours = ours_slope * grey + offset
    inner = (slice(9, -9), slice(9, -9))
    assert np.abs(ours[inner] - expected[inner]).max() < 1e-3


def guided(grid: Grid, photo: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Probabilities of a photo in one piece by the formulas of the paper, in scipy and 64 bits."""
    height, width = photo.shape[:2]
    grey = np.asarray(Image.fromarray(photo).convert("L")) / 255.0
    few = -(-height // 2), -(-width // 2)
    places = [
        (np.arange(count) + 0.5) * side / count for count, side in zip(few, grey.shape, strict=True)
    ]
    halves = np.stack(np.meshgrid(*places, indexing="ij")) - 0.5  # of points, in pixels

    def at(plane: NDArray[Any], y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(ndimage.map_coordinates(plane, [y, x], order=1, mode="nearest"))

    def mean(plane: NDArray[Any]) -> NDArray[np.float64]:
        inside = ndimage.uniform_filter(np.ones_like(plane), 9, mode="constant")
        return np.asarray(ndimage.uniform_filter(plane, 9, mode="constant") / inside)

    triangle = ndimage.convolve1d(grey, [0.125, 0.375, 0.375, 0.125], 0, origin=-1)
    triangle = ndimage.convolve1d(triangle, [0.125, 0.375, 0.375, 0.125], 1, origin=-1)
    small = at(triangle, *(halves - 0.5))
    spread = mean(small * small) - mean(small) ** 2 + 0.002
    points = [(halves[axis] + 0.5 - grid.origin[1 - axis]) / grid.step[1 - axis] for axis in (0, 1)]
    pixels = [
        np.clip(
            (np.mgrid[:height, :width][axis] + 0.5) * few[axis] / grey.shape[axis] - 0.5, 0, None
        )
        for axis in (0, 1)
    ]
    found = []
    for values in grid.values:
        plane = at(values / 255.0, *points)
        slope = (mean(small * plane) - mean(small) * mean(plane)) / spread
        offset = mean(mean(plane) - slope * mean(small))
        found.append(at(mean(slope), *pixels) * grey + at(offset, *pixels))
    return np.stack(found)


def scene(width: int, height: int) -> tuple[Grid, NDArray[np.uint8]]:
    """Coarse probabilities of five classes, and a photo with edges next to their borders."""
    rng = np.random.default_rng(3)
    shape = (height // 4, width // 4)
    noise = np.stack([ndimage.gaussian_filter(rng.random(shape), 9) for _ in range(5)])
    noise = (noise - noise.mean((1, 2), keepdims=True)) / noise.std((1, 2), keepdims=True)
    noise[4] = -100  # a class without any probability
    chances = np.exp(2.5 * noise) / np.exp(2.5 * noise).sum(axis=0)
    winners = Image.fromarray(noise.argmax(axis=0).astype(np.uint8) * 60)
    photo = np.asarray(winners.resize((width, height), Image.Resampling.NEAREST).convert("RGB"))
    shaken = np.roll(photo, (2, 3), (0, 1)) + rng.integers(0, 12, photo.shape, np.uint8)
    return Grid((chances * 255).astype(np.uint8), (2.0, 2.0), (4.0, 4.0)), shaken


@pytest.mark.parametrize(
    "size",
    [
        (700, 400),
        pytest.param((1310, 652), marks=pytest.mark.slow),
        pytest.param((333, 655), marks=pytest.mark.slow),
        pytest.param((647, 1283), marks=pytest.mark.slow),
    ],
)
def test_labels_in_pieces_are_those_of_the_whole_photo(size: tuple[int, int]) -> None:
    """A photo that was cut into windows may be large: it is filtered in pieces."""
    grid, photo = scene(*size)
    ours = smooth_labels(grid, [0, 1, 2, 3, 4], photo, size)
    chances = guided(grid, photo)
    expected = chances.argmax(axis=0)
    assert len(np.unique(expected)) == 4
    assert (ours == expected).mean() > 0.99
    missing = chances.max(axis=0) - np.take_along_axis(chances, ours[None], axis=0)[0]
    assert (missing < 0.02).mean() > 0.999  # scores are compared in steps of 1/255
    coarse = grid.values.argmax(axis=0).repeat(4, 0).repeat(4, 1)
    height, width = coarse.shape
    assert (coarse != expected[:height, :width]).mean() > 0.02  # else there is nothing to compare


@pytest.mark.slow
@pytest.mark.parametrize("size", [(700, 1400), (1282, 646)])
def test_pieces_leave_no_seams(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels are those of one piece, with weights and margins too."""
    grid, photo = scene(*size)
    rules = (None, ((1.0, 1.2, 0.8, 1.0, 1.0), (0.0, 0.1, -0.05, 0.0, 0.3)))
    cut = [smooth_labels(grid, range(5), photo, size, each) for each in rules]
    monkeypatch.setattr(smooth, "PIECE", 10_000)
    for ours, rule in zip(cut, rules, strict=True):
        whole = smooth_labels(grid, range(5), photo, size, rule)
        assert (ours == whole).mean() > 0.9999
    assert (cut[0] != cut[1]).any()


@pytest.mark.slow
def test_the_memory_of_pieces_does_not_grow_with_the_photo() -> None:
    peaks = []
    for size in ((1920, 1920), (3200, 3200)):
        grid, photo = scene(*size)
        tracemalloc.start()
        labels = smooth_labels(grid, range(5), photo, size)
        peaks.append(tracemalloc.get_traced_memory()[1] - labels.nbytes)
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


@pytest.mark.parametrize("size", [(260, 190), (267, 191), (1301, 977), (131, 950)])
def test_tiles_give_the_labels_of_enlarging_everything(size: tuple[int, int]) -> None:
    """Most tiles are not enlarged; the labels are as if they were, but for rounding to 1/255."""
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.random((5, 95, 130)), (0, 6, 6))
    noise = (noise - noise.min()) / np.ptp(noise)
    noise[4] *= 0.9  # wins nearly nowhere
    scores = (noise * 255).astype(np.uint8)
    classes = np.array([0, 3, 7, 8, 20], np.uint8)
    ours = largest(scores, classes, size)
    whole = np.stack([np.asarray(Image.fromarray(each).resize(size, BILINEAR)) for each in scores])
    won = np.take_along_axis(whole, np.searchsorted(classes, ours)[None], axis=0)[0]
    assert len(np.unique(ours)) >= 4
    assert (ours == classes[whole.argmax(axis=0)]).mean() > 0.999
    assert (won.astype(np.int64) + 1 >= whole.max(axis=0)).all()


def test_tiles_with_one_class_are_not_enlarged() -> None:
    """One border from top to bottom: only the tiles along it are contested."""
    scores = np.zeros((2, 96, 160), np.uint8)
    scores[0, :, :70], scores[1, :, 70:] = 200, 200
    rows, columns = np.linspace(0, 96, 7), np.linspace(0, 160, 11)
    contested = smooth._able(scores, rows, columns).sum(axis=0) > 1
    assert contested.any(axis=1).all()
    assert contested.any(axis=0).tolist() == [False] * 4 + [True] + [False] * 5
