"""Show the progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from service.client.plain import counted, plain

BAR_WIDTH = 24
BAR_EVERY_S = 0.1
LINE_EVERY_S = 10.0
RATE_WINDOW_S = 30.0


@dataclass
class Counts:
    """The results of this run's photos so far."""

    sent: int = 0  # answered and written
    skipped: int = 0  # were already complete
    rejected: int = 0  # refused by the service, now or earlier
    failed: int = 0  # no result for another reason
    unshrunk: int = 0  # sent larger than --max-side, because only the service can decode them

    repeated: int = 0  # named again in this run; not counted above

    def settled(self) -> int:
        return self.sent + self.skipped + self.rejected + self.failed


class Progress:
    """Call `update` after each photo and `note` for a line that should stay."""

    def __init__(
        self, counts: Counts, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = counts
        self.total: int | None = None  # unknown until the inputs are counted
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._drawn_at = clock()
        self._drawn_count = 0  # photos in the last line
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])  # (when, photos worked on)

    def update(self) -> None:
        """Draw the progress if it is due."""
        now = self._clock()
        if now - self._drawn_at < (BAR_EVERY_S if self._is_terminal else LINE_EVERY_S):
            return
        self._drawn_at = now
        self._mark(now)
        self._draw()

    def note(self, text: str) -> None:
        """Print a line above the bar, with control characters escaped."""
        text = plain(text)
        self._stream.write(f"\r\x1b[K{text}\n" if self._is_terminal else f"{text}\n")
        if self._is_terminal:
            self._draw()
        self._stream.flush()

    def close(self) -> None:
        """Draw the final state, unless the run ended before its first photo."""
        if not self.counts.settled():
            self._stream.write("\r\x1b[K" if self._is_terminal else "")
            self._stream.flush()
            return
        if self._is_terminal or self._drawn_count != self.counts.settled():
            self._mark(self._clock())
            self._draw()
        if self._is_terminal:
            self._stream.write("\n")
        self._stream.flush()

    def line(self) -> str:
        """`120/1000  8.3/s  ETA 1:46  2 failures`."""
        counts = self.counts
        done, rate = counts.settled(), self.rate()
        total = self._photos()
        parts = [f"{done}/{total if total is not None else '?'}", f"{rate:.1f}/s"]
        if total is not None and rate > 0:
            parts.append(f"ETA {duration((total - done) / rate)}")
        if failures := counts.rejected + counts.failed:
            parts.append(counted(failures, "failure"))
        return "  ".join(parts)

    def rate(self) -> float:
        """Return the recent photos per second, without skipped ones, which take no time."""
        (then, before), (now, worked) = self._marks[0], self._marks[-1]
        return (worked - before) / (now - then) if now > then else 0.0

    def _photos(self) -> int | None:
        """Return the total without repeats, which have no result of their own."""
        return None if self.total is None else self.total - self.counts.repeated

    def _mark(self, now: float) -> None:
        self._marks.append((now, self.counts.settled() - self.counts.skipped))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_WINDOW_S:
            self._marks.popleft()

    def _draw(self) -> None:
        self._drawn_count = self.counts.settled()
        if not self._is_terminal:
            self._stream.write(f"{self.line()}\n")
        else:
            total = self._photos()
            share = min(1.0, self.counts.settled() / total) if total else 0.0
            bar = ("█" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, "·")
            self._stream.write(f"\r\x1b[K{bar} {self.line()}")
        self._stream.flush()


def duration(seconds: float) -> str:
    """`1:46` or `2:03:09`."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
