"""Uncertainty has its extremes where theory says, and the chosen photos cover the others."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from model.curate.uncertainty import SCALES, Vectors, disagreement, entropy, margin, spread

SURE = np.stack([np.ones((4, 5)), np.zeros((4, 5)), np.zeros((4, 5))]).astype(np.float32)
OTHER = SURE[[1, 0, 2]]
EVEN = np.full((3, 4, 5), 1 / 3, np.float32)


def test_uncertainty_is_0_if_one_class_is_certain_and_1_if_all_are_equal() -> None:
    assert margin(SURE) == 0
    assert entropy(SURE) == pytest.approx(0, abs=1e-6)
    assert margin(EVEN) == pytest.approx(1)
    assert entropy(EVEN) == pytest.approx(1)


def test_margin_uses_the_two_best_classes_and_entropy_uses_all() -> None:
    """By hand: 0.5, 0.3, 0.2."""
    found = np.array([0.3, 0.5, 0.2], np.float32).reshape(3, 1, 1)
    assert margin(found) == pytest.approx(1 - 0.2, abs=1e-6)
    by_hand = -sum(p * math.log(p) for p in (0.3, 0.5, 0.2)) / math.log(3)
    assert entropy(found) == pytest.approx(by_hand, abs=1e-6)


def test_passes_that_agree_do_not_disagree_however_unsure_they_are() -> None:
    assert disagreement([EVEN] * len(SCALES)) == pytest.approx(0, abs=1e-6)
    assert disagreement([SURE] * len(SCALES)) == pytest.approx(0, abs=1e-6)
    assert disagreement([SURE, OTHER]) == pytest.approx(math.log(2) / math.log(3), abs=1e-6)


def test_chosen_photos_cover_the_others_nearly_as_well_as_any() -> None:
    """The radius of greedy k-centre is at most twice the smallest, found by trying all choices."""

    def radius(indices: tuple[int, ...], points: Vectors) -> float:
        gaps = np.linalg.norm(points[:, None] - points[list(indices)], axis=2)
        return float(gaps.min(axis=1).max())

    rng = np.random.default_rng(0)
    for _ in range(20):
        vectors = rng.normal(size=(10, 3)).astype(np.float32)
        chosen = spread(vectors, 3)
        assert len(set(chosen)) == 3

        best = min(radius(each, vectors) for each in combinations(range(10), 3))
        assert radius(tuple(chosen), vectors) <= 2 * best + 1e-5


def test_asking_for_more_photos_than_there_are_gives_each_once() -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert sorted(spread(vectors, 9)) == [0, 1, 2, 3]
