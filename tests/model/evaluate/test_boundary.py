"""Boundary IoU against iterated erosion, as its authors compute it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from model.evaluate.boundary import BoundaryIoU
from model.evaluate.metrics import Confusion

Masks = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def pictures() -> Masks:
    """Rectangles, some at the picture's edge, predicted a few pixels off; one void rim."""
    rng = np.random.default_rng(5)
    made = []
    for height, width in ((60, 90), (120, 41), (20, 20)):
        truth = np.zeros((height, width), np.uint8)
        prediction = np.zeros((height, width), np.uint8)
        truth[: height // 2, : width // 3] = 1
        prediction[: height // 2 - 3, : width // 3 + 4] = 1
        top, left = (int(n) for n in rng.integers(height // 2, height - 8, 2) % (width - 8))
        truth[top : top + 8, left : left + 8] = 2
        prediction[top + 1 : top + 8, left : left + 6] = 3
        truth[height // 2, :] = 255
        made.append((truth, prediction))
    return made


def edge(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """A mask minus its erosion, one pixel at a time; pixels beyond the picture count as outside."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width))


def oracle(masks: Masks, classes: int, pixels: int | None = None) -> list[float]:
    found = []
    for label in range(classes):
        intersection = union = 0
        for truth, prediction in masks:
            diagonal = (truth.shape[0] ** 2 + truth.shape[1] ** 2) ** 0.5
            width = pixels or max(1, round(0.02 * diagonal))
            seen = np.where(truth == 255, 255, prediction)
            true, predicted = edge(truth == label, width), edge(seen == label, width)
            intersection += int((true & predicted).sum())
            union += int((true | predicted).sum())
        found.append(intersection / union if union else np.nan)
    return found


@pytest.mark.parametrize("pixels", [None, 3])
def test_boundary_iou_equals_iterated_erosion(pixels: int | None) -> None:
    masks = pictures()
    metric = BoundaryIoU(5, pixels=pixels)
    for truth, prediction in masks:
        metric.add(truth, prediction)
    expected = oracle(masks, 5, pixels)
    assert np.allclose(metric.iou(), expected, equal_nan=True)
    assert metric.miou() == pytest.approx(np.nanmean(expected))
    assert np.isnan(metric.iou()[4])
    assert 0 < metric.iou()[1] < 1


def test_a_perfect_prediction_scores_one_despite_void() -> None:
    """Predictions on void pixels do not change the edge."""
    truth, _ = pictures()[0]
    metric = BoundaryIoU(4)
    metric.add(truth, np.where(truth == 255, 1, truth).astype(np.uint8))
    assert metric.miou() == 1


def test_a_small_shift_costs_more_at_the_edge_than_inside() -> None:
    """The measure exists for this case, which mIoU barely notices."""
    truth = np.zeros((200, 200), np.uint8)
    truth[20:180, 20:180] = 1
    metric, whole = BoundaryIoU(2), Confusion(2)
    for each in (metric, whole):
        each.add(truth, np.roll(truth, 3, axis=1))
    assert whole.iou()[1] > 0.95
    assert metric.iou()[1] < 0.75
