"""The state of a job as the service reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.client.plain import sentence
from service.client.records import count

STATES = ("queued", "running", "done", "failed")


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the service. Times are seconds since 1970."""

    id: str
    state: str  # one of STATES
    photos: int
    done: int  # finished photos, including failed ones
    failed: int
    created: float
    ended: float | None
    expires: float | None  # when the job and its result are removed
    error: str | None  # why the job failed as a whole

    @property
    def has_ended(self) -> bool:
        """Whether the job is done, has failed or was cancelled."""
        return self.state in {"done", "failed"}


def job_of(found: Any) -> Job:
    """Parse a job of untrusted JSON; raises ValueError, KeyError or TypeError."""
    state = found["state"]
    if state not in STATES:
        raise ValueError(f"{state!r} is no state of a job")
    return Job(
        id=sentence(found["id"]),
        state=state,
        photos=count(found["photos"]),
        done=count(found["done"]),
        failed=count(found["failed"]),
        created=float(found["created"]),
        ended=_time(found.get("ended")),
        expires=_time(found.get("expires")),
        error=None if found.get("error") is None else sentence(found["error"]),
    )


def _time(found: Any) -> float | None:
    return None if found is None else float(found)
