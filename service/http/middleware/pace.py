"""Answer a flood of refused requests slowly.

To refuse a request costs a fraction of a millisecond to some milliseconds. A client that repeats
refused requests as fast as they are answered would take the processors from all others.
"""

from __future__ import annotations

import asyncio
import random
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.limits import BODY_BYTES, content_length

BURST = 50  # refusals that are answered at once after a pause
MOST_S = 2.0  # that an answer waits
LARGE = 4 * 2**20  # bytes of a body; of a client that has left, smaller ones may wait in the kernel


class Pace:
    """When refusals may be answered: `per_s` in a second, in the order in which they come."""

    def __init__(self, per_s: float) -> None:
        """`per_s` of 0: at once."""
        self._each_s = 1 / per_s if per_s else 0.0
        self._next = 0.0  # on the monotonic clock

    def wait_s(self, body_bytes: int = 0) -> float:
        """Count a refusal; return the seconds that its answer should wait, at most MOST_S.

        A megabyte of a body that was read counts as much as a request.
        """
        now = time.monotonic()
        earliest = now - BURST * self._each_s
        cost_s = self._each_s * (1 + body_bytes / 2**20)
        self._next = min(max(self._next, earliest) + cost_s, now + MOST_S)
        return max(0.0, self._next - now)

    @property
    def backlog_s(self) -> float:
        """The seconds for which the next refusal would wait."""
        return max(0.0, self._next - time.monotonic())


class PacedRefusals:
    """ASGI middleware: answers with an error status to POST wait for their turn.

    The application ends before, so a refused request holds no memory and no slot meanwhile.
    Requests whose client left count too. While refusals wait, so do large bodies before they are
    read: otherwise a flood of them would take the processors nevertheless.
    """

    def __init__(self, app: ASGIApp, per_s: float) -> None:
        self.app = app
        self._pace = Pace(per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        refusal: list[Message] = []
        must_wait = content_length(scope) > LARGE

        async def paced() -> Message:
            nonlocal must_wait
            if must_wait:
                must_wait = False
                # Not all end their wait at the same time: they would then take all slots.
                await asyncio.sleep(self._pace.backlog_s * random.uniform(0.5, 1))
            return await receive()

        async def kept(message: Message) -> None:
            start = message["type"] == "http.response.start"
            if refusal or (start and message["status"] >= 400):
                refusal.append(message)
            else:
                await send(message)

        await self.app(scope, paced, kept)
        if refusal:
            await asyncio.sleep(self._pace.wait_s(scope.get(BODY_BYTES, 0)))
        for message in refusal:
            await send(message)
