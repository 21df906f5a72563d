"""How long a service's event loop was held, from its metrics."""

from __future__ import annotations

import math
import re

# Bounds are in the order of their size, and each count contains those before it.
BUCKET = re.compile(
    r'^deeplab_event_loop_turn_seconds_bucket{clock="processor",le="(.+)"} (.+)$', re.MULTILINE
)

Turns = dict[float, float]  # upper bound in seconds -> turns up to it


def read(metrics: str) -> Turns:
    """Read the turns of the event loop, in processor time, from the text of /metrics."""
    return {float(bound): float(count) for bound, count in BUCKET.findall(metrics)}


def longest_ms(before: Turns, after: Turns) -> float:
    """Return a bound of the longest turn between two readings; 0 if there was none."""
    longest, shorter = 0.0, 0.0
    for bound, count in after.items():
        new = count - before.get(bound, 0.0)
        if new > shorter:
            longest, shorter = bound, new
    return longest * 1000 if math.isfinite(longest) else math.inf
