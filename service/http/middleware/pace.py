"""Answer a flood of refused requests, and of requests for pages, slowly.

Each costs a fraction of a millisecond to some milliseconds. A client that repeats them as fast as
they are answered would take the processors from all others.
"""

from __future__ import annotations

import asyncio
import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.limits import BODY_BYTES, content_length

AT_ONCE_S = 1.0  # after a pause, what may come in so long is answered at once
MOST_S = 2.0  # that an answer waits
MOST_WAITING = 500  # requests of a kind: each holds a connection
LARGE = 4 * 2**20  # bytes of a body; of a client that has left, smaller ones may wait in the kernel
PAGES = 4  # requests for pages are answered so many times as often as refusals
COSTS = {"/metrics": 10.0, "/openapi.json": 3.0}  # in requests for other pages
# A slow probe ends a service.
PROBES = re.compile(r"/livez|/readyz|/v2/health/(live|ready)|/v2/models/[^/]+/ready")


class Pace:
    """When requests may be answered: `per_s` in a second, in the order in which they come."""

    def __init__(self, per_s: float) -> None:
        """`per_s` of 0: at once."""
        self._each_s = 1 / per_s if per_s else 0.0
        self._next = 0.0  # on the monotonic clock
        self._waiting = 0

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

    async def wait(self, cost: float = 1.0) -> None:
        """Count a request, and wait for its turn."""
        await self._sleep(self.wait_s(cost))

    async def wait_for_others(self) -> None:
        """Wait until the requests so far have had their turns, or for a part of that time.

        Those that wait must not all go on at the same moment.
        """
        await self._sleep(self.backlog_s * random.uniform(0.5, 1))

    async def _sleep(self, seconds: float) -> None:
        if not seconds or self._waiting >= MOST_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting -= 1


class Paced:
    """ASGI middleware: error answers to POST wait for their turn, and so do all other requests.

    The application ends before an error waits, so a refused request holds no memory and no slot
    meanwhile. A megabyte of its body counts as much as a request, and requests whose client left
    count too. While refusals wait, so do requests with large bodies, before the service reads them
    and counts their time: otherwise a flood of them would take the processors nevertheless. Probes
    never wait, nor does what comes to the private port of metrics.
    """

    def __init__(
        self, app: ASGIApp, refusals_per_s: float, metrics_port: int | None = None
    ) -> None:
        self.app = app
        self.metrics_port = metrics_port
        self._refusals = Pace(refusals_per_s)
        self._pages = Pace(PAGES * refusals_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._never_waits(scope):
            await self.app(scope, receive, send)
        elif scope["method"] != "POST":
            await self._pages.wait(COSTS.get(scope["path"], 1.0))
            await self.app(scope, receive, send)
        else:
            await self._post(scope, receive, send)

    def _never_waits(self, scope: Scope) -> bool:
        _, port = scope.get("server") or ("", None)
        on_metrics_port = self.metrics_port is not None and port == self.metrics_port
        return on_metrics_port or PROBES.fullmatch(scope["path"]) is not None

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: list[Message] = []

        async def kept(message: Message) -> None:
            start = message["type"] == "http.response.start"
            if refusal or (start and message["status"] >= 400):
                refusal.append(message)
            else:
                await send(message)

        if _may_be_large(scope):
            await self._refusals.wait_for_others()
        await self.app(scope, receive, kept)
        if refusal:
            await self._refusals.wait(1 + scope.get(BODY_BYTES, 0) / 2**20)
        for message in refusal:
            await send(message)


def _may_be_large(scope: Scope) -> bool:
    """Whether the body of a request is large, or does not say how large it is."""
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    return chunked or content_length(scope) > LARGE
