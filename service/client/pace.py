"""Choose the number of requests in flight by hill climbing on the throughput.

The limit doubles while each window of answers is at least GAIN times as fast as the one
before. Otherwise the limit with the last gain is kept. After every HOLD_WINDOWS windows the
limit is raised by a quarter for a try, since the service may have gained replicas. A 503
halves the limit at once, at most once per window, and undoes the last increase.

This module knows neither HTTP nor asyncio; callers pass the time.
"""

from __future__ import annotations

GAIN = 1.05
HOLD_WINDOWS = 10
MIN_WINDOW = 8  # answers; in a shorter window one slow photo would decide
MAX_IN_FLIGHT = 64


class Pace:
    """`limit` is the number of requests that may be in flight now."""

    def __init__(
        self, *, start: int = 2, maximum: int = MAX_IN_FLIGHT, is_adaptive: bool = True
    ) -> None:
        self.limit = start
        self._maximum = maximum
        self._is_adaptive = is_adaptive
        self._growing = True
        self._step = 2.0  # doubling at first, a quarter more later
        self._kept = start  # the limit before the step that is being tried
        self._kept_rate = 0.0
        self._held = 0
        self._answers = 0
        self._throttled = False
        self._window_began: float | None = None

    @classmethod
    def fixed(cls, limit: int) -> Pace:
        """Return a pace with a constant limit."""
        return cls(start=limit, maximum=limit, is_adaptive=False)

    def throttled(self) -> None:
        """Reduce the limit after a 503."""
        if not self._is_adaptive or self._throttled:
            return
        self._throttled = True
        self._growing = False
        self._held = 0
        self.limit = max(1, min(self.limit // 2, self._kept))

    def answered(self, now: float) -> None:
        """Count an answer, good or bad, at `now` seconds."""
        if not self._is_adaptive:
            return
        if self._window_began is None:
            self._window_began = now
            return
        self._answers += 1
        if self._answers >= max(MIN_WINDOW, 2 * self.limit) and now > self._window_began:
            self._close_window(self._answers / (now - self._window_began))
            self._window_began, self._answers, self._throttled = now, 0, False

    def _close_window(self, rate: float) -> None:
        if self._throttled:
            return
        if not self._growing:
            self._held += 1
            if self._held >= HOLD_WINDOWS:
                self._try_more(rate, step=1.25)
        elif rate > GAIN * self._kept_rate:
            self._try_more(rate, self._step)
        else:
            self.limit, self._growing, self._held = self._kept, False, 0

    def _try_more(self, rate: float, step: float) -> None:
        self._kept, self._kept_rate, self._step = self.limit, rate, step
        self._growing, self._held = True, 0
        self.limit = min(self._maximum, max(self.limit + 1, int(self.limit * step)))
