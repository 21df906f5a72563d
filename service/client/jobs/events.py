"""Read the server-sent events of a job (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx

from service.client.exchange import Ask, Exchange
from service.client.jobs.job import Job, job_of
from service.client.plain import parse_json

KIND = "text/event-stream"
FIRST_S = 10.0  # for the first event, which the service sends at once; a proxy may hold it back
SILENCE_S = 45.0  # the service writes at least every 15 s
MOST_BYTES = 64 << 10  # of an event


async def follow(exchange: Exchange, path: str, hear: Callable[[Job], None]) -> bool:
    """Call `hear` with every state until the events end; return whether any came.

    Errors are not raised: the caller then requests the state, and gets the same error there.
    """
    heard = False
    try:
        async with (
            asyncio.timeout(FIRST_S) as timer,
            exchange.stream(Ask("GET", path, extra={"Accept": KIND})) as answer,
        ):
            async for data in _data(answer, timer):
                hear(job_of(parse_json(data)))
                heard = True
    except (httpx.RequestError, TimeoutError, ValueError, KeyError, TypeError):
        pass
    return heard


async def _data(answer: httpx.Response, timer: asyncio.Timeout) -> AsyncIterator[bytes]:
    """Yield the `data` of each event; extend `timer` as bytes arrive."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not answer.is_success or kind != KIND:
        return
    held, data = b"", b""
    async for piece in answer.aiter_raw():
        timer.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
        *lines, held = (held + piece).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data += line.removeprefix(b"data:")
            elif not line and data:
                yield data
                data = b""
        if len(held) + len(data) > MOST_BYTES:
            raise ValueError("an event is too long")
