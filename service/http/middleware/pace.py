"""Answer a flood of refused requests, and of requests for pages, slowly.

Each costs a fraction of a millisecond to some milliseconds. A client that repeats them as fast as
they are answered would take the processors from all others.
"""

from __future__ import annotations

import asyncio
import random
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.limits import BODY_BYTES, content_length

AT_ONCE_S = 1.0  # after a pause, what may come in so long is answered at once
MOST_S = 2.0  # that an answer waits
MOST_WAITING = 500  # requests: each holds a connection
LARGE = 4 * 2**20  # bytes of a body; of a client that has left, smaller ones may wait in the kernel
PAGES = 4  # requests for pages are answered so many times as often as refusals
COSTS = {"/metrics": 10.0, "/openapi.json": 3.0}  # in requests for other pages
PROBES = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}  # a slow one ends a service


class Pace:
    """When requests may be answered: `per_s` in a second, in the order in which they come."""

    def __init__(self, per_s: float) -> None:
        """`per_s` of 0: at once."""
        self._each_s = 1 / per_s if per_s else 0.0
        self._next = 0.0  # on the monotonic clock

    def wait_s(self, cost: float = 1.0) -> float:
        """Count a request; return the seconds that it should wait, at most MOST_S.

        A request of cost 2 counts as two.
        """
        now = time.monotonic()
        spent = max(self._next, now - AT_ONCE_S) + cost * self._each_s
        self._next = min(spent, now + MOST_S)
        return self.backlog_s

    @property
    def backlog_s(self) -> float:
        """The seconds for which the last request waits."""
        return max(0.0, self._next - time.monotonic()) if self._each_s else 0.0


class Paced:
    """ASGI middleware: error answers to POST wait for their turn, and so do all other requests.

    The application ends before an error waits, so a refused request holds no memory and no slot
    meanwhile. A megabyte of its body counts as much as a request, and requests whose client left
    count too. While refusals wait, so do large bodies before they are read: otherwise a flood of
    them would take the processors nevertheless. Probes never wait.
    """

    def __init__(self, app: ASGIApp, refusals_per_s: float) -> None:
        self.app = app
        self._refusals = Pace(refusals_per_s)
        self._pages = Pace(PAGES * refusals_per_s)
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
        elif scope["method"] != "POST":
            await self._wait(self._pages.wait_s(COSTS.get(scope["path"], 1.0)))
            await self.app(scope, receive, send)
        else:
            await self._post(scope, receive, send)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: list[Message] = []
        must_wait = content_length(scope) > LARGE

        async def paced() -> Message:
            nonlocal must_wait
            if must_wait:
                must_wait = False
                # Not all end their wait at the same time: they would then take all slots.
                await self._wait(self._refusals.backlog_s * random.uniform(0.5, 1))
            return await receive()

        async def kept(message: Message) -> None:
            start = message["type"] == "http.response.start"
            if refusal or (start and message["status"] >= 400):
                refusal.append(message)
            else:
                await send(message)

        await self.app(scope, paced, kept)
        if refusal:
            await self._wait(self._refusals.wait_s(1 + scope.get(BODY_BYTES, 0) / 2**20))
        for message in refusal:
            await send(message)

    async def _wait(self, seconds: float) -> None:
        if not seconds or self._waiting >= MOST_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting -= 1
