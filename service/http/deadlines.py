"""How long a request may take, from its first byte to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import DeadlineExceeded, InvalidRequest

HEADER = "X-Request-Timeout-Ms"
LONGEST_MS = 3_600_000  # an hour: more is a mistake in units


def milliseconds(text: str | None, default: int) -> int:
    """The client's own limit, or the default; raises InvalidRequest unless it is a number."""
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= LONGEST_MS:
        return int(text)
    raise InvalidRequest(f"{HEADER}: {text!r}: give milliseconds, 1 to {LONGEST_MS}")


@asynccontextmanager
async def enforced(milliseconds: int) -> AsyncIterator[float]:
    """Cancel what takes longer and raise DeadlineExceeded; gives the point of the clock."""
    deadline = asyncio.get_running_loop().time() + milliseconds / 1000
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield deadline
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(
            f"no result within {milliseconds} ms: allow more in {HEADER}, or send less"
        ) from None
