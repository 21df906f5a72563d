"""An event loop that measures its turns.

In a turn the loop runs everything that has become ready. New events, such as a probe of /livez,
wait until the turn ends. So the longest turn is the longest time without any answer.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from typing import Any

# Seconds: bounds of the histogram. Turns of 0.2 s and more delay probes noticeably.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Durations:
    """A histogram of durations on one clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._counts = [0] * (len(BOUNDS) + 1)
        self.sum_s = 0.0

    def begin(self) -> None:
        """Begin to measure."""
        self._began = self._clock()

    def end(self) -> None:
        """Record the time since `begin`."""
        seconds = self._clock() - self._began
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return upper bounds and the numbers of durations up to them, as Prometheus expects."""
        return list(zip([*map(str, BOUNDS), "+Inf"], accumulate(self._counts), strict=True))


class MeasuredLoop(asyncio.SelectorEventLoop):
    """The usual event loop, with the durations of its turns."""

    def __init__(self) -> None:
        # The thread's processor time is the loop's own work. Wall time also contains waits for a
        # CPU, and for threads that hold Python's lock.
        self.turns = {"wall": Durations(time.monotonic), "processor": Durations(time.thread_time)}
        super().__init__(_Selector(tuple(self.turns.values())))


class _Selector(selectors.DefaultSelector):
    """The loop asks it for new events at the end of every turn."""

    def __init__(self, turns: tuple[Durations, ...]) -> None:
        super().__init__()
        self._turns = turns

    def select(self, timeout: float | None = None) -> list[Any]:
        """Wait for events."""
        for each in self._turns:
            each.end()
        found = super().select(timeout)
        for each in self._turns:
            each.begin()
        return found
