"""Regions with a wrong label are found; inexact borders are not reported."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.curate.suspects import suspects

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
