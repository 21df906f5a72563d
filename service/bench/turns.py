"""How long a service's event loop was held, from its metrics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

BUCKET = "deeplab_event_loop_turn_seconds_bucket"

# Upper bound in seconds -> turns up to it. Bounds ascend; each count contains those before it.
Turns = dict[float, float]


def read(metrics: str) -> Turns:
    """Read the turns of the event loop, in processor time, from the text of /metrics."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == BUCKET and sample.labels["clock"] == "processor"
    }


def longest_ms(before: Turns, after: Turns) -> float:
    """Return an upper bound of the longest turn between two readings; 0 if there was none."""
    longest, shorter = 0.0, 0.0
    for bound, count in after.items():
        new = count - before.get(bound, 0.0)
        if new > shorter:
            longest, shorter = bound, new
    return longest * 1000
