"""The error of this package, and what a reader leaves out, by name and count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


class AnnotationError(ValueError):
    """A label file cannot be read; the message names it and says what to do."""


@dataclass
class Notes:
    """What was not used, each kind with its number and the first place where it occurs."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        """Count one more of a kind, such as `polyline of lane: not an area`."""
        count, first = self.found.get(what, (0, where))
        self.found[what] = (count + 1, first)

    def lines(self) -> Iterator[str]:
        """Yield `12 x polyline of lane: not an area (first in a.jpg)`, the most frequent first."""
        for what, (count, first) in sorted(self.found.items(), key=lambda each: -each[1][0]):
            yield f"{count} x {what} (first in {first})"
