"""Compare the processor time of two pieces of work in one run: ratios hardly differ by machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def ratio(work: Callable[[], object], to: Callable[[], object]) -> float:
    """Return the smallest of three ratios of processor time, the first work to the second."""

    def seconds(each: Callable[[], object]) -> float:
        began = time.thread_time()
        each()
        return time.thread_time() - began

    pairs = [(seconds(work), seconds(to)) for _ in range(3)]
    return min(first for first, _ in pairs) / min(second for _, second in pairs)
