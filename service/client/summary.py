"""The summary of a run, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.client.inputs import Others
from service.client.manifest import Manifest
from service.client.plain import plain
from service.client.progress import Counts, duration

FAILURES_SHOWN = 20


@dataclass(frozen=True)
class Summary:
    """The result of a run; `stopped` is the reason of an early end, or None."""

    counts: Counts
    seconds: float
    model: str | None
    model_digest: str | None
    failures: tuple[tuple[str, str, str], ...]  # name, status, reason
    classes: tuple[tuple[int, str, int, int], ...]  # id, name, pixels, photos
    stopped: str | None
    others: Others = field(default_factory=Others)

    @classmethod
    def of(
        cls,
        counts: Counts,
        seconds: float,
        manifest: Manifest,
        model: tuple[str | None, str | None],
        stopped: str | None,
        *,
        others: Others,
    ) -> Summary:
        failures, classes = tuple(manifest.failures()), tuple(manifest.classes())
        return cls(counts, seconds, *model, failures, classes, stopped, others)

    def exit_code(self) -> int:
        """Return 0 only if every input has a complete result."""
        return int(self.stopped is not None or self.counts.rejected + self.counts.failed > 0)

    def text(self) -> str:
        """Format as a sentence, followed by the failures."""
        c = self.counts
        rate = c.sent / self.seconds if self.seconds > 0 else 0.0
        took = f"{duration(self.seconds)} ({rate:.1f}/s)"
        tail = f"{c.skipped} were complete already, {c.rejected} rejected, {c.failed} failed"
        lines = [f"{c.sent} done in {took}, {tail}"]
        lines += [f"  {name}: {reason}" for name, _, reason in self.failures[:FAILURES_SHOWN]]
        if len(self.failures) > FAILURES_SHOWN:
            lines.append(f"  ... and {len(self.failures) - FAILURES_SHOWN} more (--json lists all)")
        if c.unshrunk:
            lines.append(f"{c.unshrunk} sent unshrunk: their results have the photo's own size")
        if self.others.counts:
            lines.append(self.others.text())
        if self.stopped is not None:
            lines.append(f"not finished: {self.stopped}; run the same command again to continue")
        return "\n".join(map(plain, lines))

    def json(self) -> dict[str, Any]:
        """Return all fields for JSON; `classes` covers all counted photos in OUT."""
        return {
            "sent": self.counts.sent,
            "skipped": self.counts.skipped,
            "rejected": self.counts.rejected,
            "failed": self.counts.failed,
            "seconds": round(self.seconds, 3),
            "model": self.model,
            "model_digest": self.model_digest,
            "stopped": self.stopped,
            "unshrunk": self.counts.unshrunk,
            "left_out": dict(self.others.counts),
            "failures": [
                {"name": name, "status": status, "reason": reason}
                for name, status, reason in self.failures
            ],
            "classes": [
                {"id": number, "name": name, "pixels": pixels, "photos": photos}
                for number, name, pixels, photos in self.classes
            ],
        }
