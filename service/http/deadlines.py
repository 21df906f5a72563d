"""Enforce the deadline of a request, which the client may set in a header."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import DeadlineExceeded, InvalidRequest

HEADER = "X-Request-Timeout-Ms"
LONGEST_MS = 3_600_000  # an hour; a larger value is probably a wrong unit


def milliseconds(text: str | None, default: int) -> int:
    """Parse the client's limit, or return the default; raises InvalidRequest."""
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= LONGEST_MS:
        return int(text)
    raise InvalidRequest(f"{HEADER}: {text!r}: give milliseconds, 1 to {LONGEST_MS}")


@asynccontextmanager
async def enforced(milliseconds: int) -> AsyncIterator[float]:
    """Cancel the block at the deadline, which is yielded in loop time; raises DeadlineExceeded."""
    deadline = asyncio.get_running_loop().time() + milliseconds / 1000
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield deadline
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(
            f"no result within {milliseconds} ms: set a longer {HEADER}, or send a smaller request"
        ) from None
