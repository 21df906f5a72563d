"""Regions with a wrong label are found; inexact borders are not reported."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.curate.suspects import Recalls, suspects, weighted

HEIGHT, WIDTH = 60, 80


def sure(labels: NDArray[np.uint8], classes: int = 3, strength: float = 0.9) -> NDArray[np.float32]:
    """Return probabilities of a network that gives the right class the probability `strength`."""
    rest = (1 - strength) / (classes - 1)
    found = np.full((classes, *labels.shape), rest, np.float32)
    for number in range(classes):
        found[number][labels == number] = strength
    return found


def scene() -> NDArray[np.uint8]:
    """Two squares of class 1 and 2."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:30, 10:30] = 1
    labels[20:50, 45:75] = 2
    return labels


def test_correct_labels_are_not_suspect() -> None:
    assert list(suspects("a", scene(), sure(scene()))) == []


def test_a_swapped_and_a_dropped_region_are_found_in_their_place() -> None:
    wrong = scene()
    wrong[10:30, 10:30] = 2
    wrong[20:50, 45:75] = 0
    worst, second = sorted(suspects("a", wrong, sure(scene())), reverse=True)
    assert (worst.label, worst.predicted, worst.box) == (0, 2, (45, 20, 75, 50))
    assert (second.label, second.predicted, second.box) == (2, 1, (10, 10, 30, 30))
    assert (worst.pixels, second.pixels) == (900, 400)
    assert abs(worst.margin - 0.85) < 1e-6


def test_a_border_that_is_off_by_two_pixels_is_not_suspect() -> None:
    wrong = scene()
    wrong[8:32, 8:32] = 1
    assert list(suspects("a", wrong, sure(scene()))) == []


def test_void_is_not_checked() -> None:
    wrong = scene()
    wrong[10:30, 10:30] = 255
    assert list(suspects("a", wrong, sure(scene()))) == []


def test_an_uncertain_network_reports_no_suspects() -> None:
    wrong = scene()
    wrong[10:30, 10:30] = 2
    assert list(suspects("a", wrong, sure(scene(), strength=0.45))) == []


def test_a_whole_object_is_more_suspect_than_a_part_of_one() -> None:
    """The same 400 pixels: a labelled square that is all wrong, and a corner of a larger one."""
    truth = scene()
    whole, part = truth.copy(), truth.copy()
    whole[10:30, 10:30] = 0
    part[20:40, 45:65] = 0
    (first,) = suspects("a", truth, sure(whole))
    (second,) = suspects("b", truth, sure(part))
    assert first.pixels == second.pixels == 400
    assert second.score / first.score == pytest.approx(400 / 900)


def test_labels_of_a_class_that_the_network_cannot_recognise_come_last() -> None:
    """It calls both squares background; of class 2 it knows nine others."""
    truth = scene()
    recalls, known = Recalls(3), np.full_like(truth, 2)
    for _ in range(9):
        recalls.add(known, known)
        recalls.add(np.ones_like(truth), np.zeros_like(truth))
    recalls.add(truth, np.zeros_like(truth))
    found = weighted(suspects("a", truth, sure(np.zeros_like(truth))), recalls)
    assert [each.label for each in found] == [2, 1]
    recall = recalls.of_classes()
    assert recall[1] < 0.1
    assert recall[2] > 0.9


def test_a_class_of_one_wrong_label_keeps_a_score() -> None:
    """As if one more photo had the mean recall."""
    recalls = Recalls(3)
    background = np.zeros((HEIGHT, WIDTH), np.uint8)
    recalls.add(background, background)
    recalls.add(scene(), np.where(scene() == 1, 0, scene()))
    missed, seen = 400, 900
    size = HEIGHT * WIDTH
    mean = (1 + 0 + 1) / 3
    assert recalls.of_classes()[1] == pytest.approx(mean * size / (missed + size))
    assert recalls.of_classes()[2] == pytest.approx((seen + mean * size) / (seen + size))
    assert (Recalls(3).of_classes() == 1).all()
