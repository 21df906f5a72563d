"""The error of this package, and counts of what a reader leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


class AnnotationError(ValueError):
    """A label file cannot be read; the message names it and says what to do."""


@dataclass
class Notes:
    """Counts of what was not used: for each kind the number and the first place."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        """Count one more of a kind, such as `polyline of lane: not an area`."""
        count, first = self.found.get(what, (0, where))
        self.found[what] = (count + 1, first)

    def lines(self) -> Iterator[str]:
        """Yield `12 x polyline of lane: not an area (first in a.jpg)`, the most frequent first."""
        for what, (count, first) in sorted(self.found.items(), key=lambda each: -each[1][0]):
            yield f"{count} x {what} (first in {first})"
