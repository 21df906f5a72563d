"""Intervals over seeds, against a table of Student's t and SciPy's test."""

from __future__ import annotations

import math

import pytest

from model.paper.studies.statistics import INDISTINGUISHABLE, TOO_FEW, difference, points


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_is_that_of_a_paired_t_test(seeds: int) -> None:
    """SciPy's own paired test is the oracle."""
    from scipy import stats

    before = [0.40 + 0.013 * (i % 3) for i in range(seeds)]
    after = [value + 0.02 + 0.004 * (i % 2) for i, value in enumerate(before)]
    gain = difference(before, after)
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (gain.mean - gain.half, gain.mean + gain.half) == pytest.approx((low, high), rel=1e-3)


def test_a_difference_is_named_only_beyond_its_interval() -> None:
    assert difference([0.3, 0.3, 0.3], [0.4, 0.41, 0.39]).verdict == "better"
    assert difference([0.4, 0.41, 0.39], [0.3, 0.3, 0.3]).verdict == "worse"
    assert difference([0.3, 0.3, 0.3], [0.4, 0.25, 0.33]).verdict == INDISTINGUISHABLE
    assert difference([0.3, 0.4], [0.3, 0.4]).verdict == INDISTINGUISHABLE
    alone = difference([0.3], [0.9])
    assert alone.verdict == TOO_FEW
    assert math.isinf(alone.half)
    assert points(alone) == "+60.00"
