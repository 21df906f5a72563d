"""The trimap band against SciPy's dilation, and mIoU in it against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from model.data.dataset import DatasetError
from model.evaluate.trimap import Trimap

WIDTHS = (1, 2, 5, 20)
Masks = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def pictures(count: int = 3) -> Masks:
    """Truth in patches with thin void lines and dots, and a prediction with errors."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(count):
        height, width = (int(n) for n in rng.integers(20, 50, 2))
        truth = np.kron(rng.integers(0, 4, (9, 9)), np.ones((6, 6))).astype(np.uint8)
        truth = truth[:height, :width].copy()
        truth[int(rng.integers(0, height)), : width // 2] = 255
        truth[height // 2, width - 1] = 255
        wrong = rng.random(truth.shape) < 0.4
        prediction = np.where(wrong, rng.integers(0, 5, truth.shape), truth % 5)
        made.append((truth, prediction.astype(np.uint8)))
    return made


def oracle(masks: Masks, width: int) -> float:
    """mIoU over all pixels that SciPy's dilation of void reaches, without void itself."""
    from sklearn.metrics import jaccard_score

    square = np.ones((2 * width + 1, 2 * width + 1), bool)
    truths, predictions = [], []
    for truth, prediction in masks:
        void = truth == 255
        band = ndimage.binary_dilation(void, square) & ~void
        truths.append(truth[band])
        predictions.append(prediction[band])
    true, predicted = np.concatenate(truths), np.concatenate(predictions)
    return float(jaccard_score(true, predicted, average="macro"))


@pytest.mark.slow
def test_miou_in_each_band_equals_scipy_and_scikit_learn() -> None:
    masks = pictures()
    trimap = Trimap(5, WIDTHS)
    for truth, prediction in masks:
        trimap.add(truth, prediction)
    assert trimap.miou() == {w: pytest.approx(oracle(masks, w)) for w in WIDTHS}
    assert len(set(trimap.miou().values())) == len(WIDTHS)


def test_a_band_wider_than_the_picture_is_the_whole_picture() -> None:
    (truth, prediction), *_ = pictures()
    trimap = Trimap(5, [99])
    trimap.add(truth, prediction)
    band = trimap.confusions()[99]
    assert band.pixels == (truth != 255).sum()


def test_order_and_repeats_of_the_widths_do_not_matter() -> None:
    ordered, shuffled = Trimap(5, (1, 2, 5)), Trimap(5, (5, 1, 2, 1))
    for truth, prediction in pictures():
        ordered.add(truth, prediction)
        shuffled.add(truth, prediction)
    assert ordered.miou() == shuffled.miou()


def test_without_void_there_is_no_band() -> None:
    trimap = Trimap(2, WIDTHS)
    trimap.add(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    with pytest.raises(DatasetError, match="no mask has void"):
        trimap.miou()
