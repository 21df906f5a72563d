"""mIoU against a plain loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluate.metrics import Confusion


def by_loop(truth: np.ndarray, prediction: np.ndarray, classes: int) -> list[float]:
    found = []
    for label in range(classes):
        hits = union = 0
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t == 255:
                continue
            hits += t == label and p == label
            union += label in (t, p)
        found.append(hits / union if union else np.nan)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_iou_equals_a_loop_over_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), (9, 11))
    prediction = rng.integers(0, 4, (9, 11), np.uint8)
    confusion = Confusion(5)  # class 4 never occurs
    confusion.add(truth, prediction)
    expected = by_loop(truth, prediction, 5)
    assert np.allclose(confusion.iou(), expected, equal_nan=True)
    assert confusion.miou() == pytest.approx(np.nanmean(expected))
    assert confusion.pixels == (truth != 255).sum()


def test_pictures_add_up_in_one_matrix() -> None:
    """The mean is over classes of the whole set, not over pictures."""
    confusion = Confusion(2)
    confusion.add(np.array([[0, 0]], np.uint8), np.array([[0, 1]], np.uint8))
    confusion.add(np.array([[1, 1]], np.uint8), np.array([[1, 1]], np.uint8))
    assert confusion.iou().tolist() == [0.5, pytest.approx(2 / 3)]


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        Confusion(2).add(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


@pytest.mark.slow  # scikit-learn takes two seconds to load
def test_the_other_figures_are_scikit_learns() -> None:
    """Precision, recall, F1 and accuracy without void; a class that never occurs is NaN."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    rng = np.random.default_rng(4)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), (30, 40))
    prediction = rng.integers(0, 3, (30, 40), np.uint8)
    confusion = Confusion(4)
    confusion.add(truth, prediction)
    judged = truth != 255
    precision, recall, f1, _ = precision_recall_fscore_support(truth[judged], prediction[judged])
    assert np.allclose(confusion.precision(), [*precision, np.nan], equal_nan=True)
    assert np.allclose(confusion.recall(), [*recall, np.nan], equal_nan=True)
    assert np.allclose(confusion.dice(), [*f1, np.nan], equal_nan=True)
    assert confusion.accuracy() == pytest.approx(accuracy_score(truth[judged], prediction[judged]))
