"""Compare the processor time of two pieces of work in one run: machines differ, but ratios hardly
do."""

from __future__ import annotations

import time
from collections.abc import Callable


def ratio(work: Callable[[], object], to: Callable[[], object]) -> float:
    """Return the processor time of the first as a multiple of the second's; the smallest of
    three."""

    def seconds(each: Callable[[], object]) -> float:
        began = time.thread_time()
        each()
        return time.thread_time() - began

    pairs = [(seconds(work), seconds(to)) for _ in range(3)]
    return min(first for first, _ in pairs) / min(second for _, second in pairs)
