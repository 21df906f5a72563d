"""Tell differences between networks from chance, with a few seeds.

Two networks of the same seed see the same crops in the same order, so they are compared
in pairs. A difference is told from chance if the 95 % interval of its mean, by Student's
t over the seeds, leaves out zero. Rows are not corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

# Two-sided 95 % quantiles of Student's t by degrees of freedom, 1 to 9; then the normal one's.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.96
INDISTINGUISHABLE = "not distinguishable"
TOO_FEW = "one seed cannot say"


class Difference(NamedTuple):
    """The mean difference of pairs, and half of its 95 % interval."""

    mean: float
    half: float  # infinite for one pair

    @property
    def verdict(self) -> str:
        """Whether the second of each pair is better, worse, or neither can be said."""
        if math.isinf(self.half):
            return TOO_FEW
        if abs(self.mean) <= self.half:
            return INDISTINGUISHABLE
        return "better" if self.mean > 0 else "worse"


def difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    """How much `after` gains over `before`, one value of each for every seed."""
    gains = [b - a for a, b in zip(before, after, strict=True)]
    if len(gains) < 2:
        return Difference(mean(gains), math.inf)
    freedom = len(gains) - 1
    # Beyond the table the normal quantile would be too small: its last value is kept up to 30.
    quantile = STUDENT[min(freedom, len(STUDENT)) - 1] if freedom < 30 else NORMAL
    return Difference(mean(gains), quantile * stdev(gains) / math.sqrt(len(gains)))


def percent(values: Sequence[float]) -> str:
    """The mean of values in 0..1 as percent; of several also the range."""
    shown = f"{100 * mean(values):.2f}"
    if len(values) == 1:
        return shown
    return f"{shown} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def points(gain: Difference) -> str:
    """A difference in percentage points, with its interval where there is one."""
    shown = f"{100 * gain.mean:+.2f}"
    return shown if math.isinf(gain.half) else f"{shown} ± {100 * gain.half:.2f}"
