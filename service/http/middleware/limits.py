"""Limit requests, pixels and bytes in progress, and the size and duration of request bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Self, TypeVar

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import AnswerTooLarge, BodyTimeout, BodyTooLarge, Overloaded

Result = TypeVar("Result")

SMALL = (
    1024 * 1024
)  # bytes of a body or an answer that counts as small, as most photos and masks do
GRACE_S = 5.0  # before a body must come with the least bytes per second
PIECE = 256 * 1024  # bytes of an answer that the server takes at once


class Admission:
    """Counts requests, pixels and bytes in progress, and refuses more than the limits."""

    def __init__(self, max_requests: int, max_pixels: int, max_bytes: int = 2**62) -> None:
        """`max_bytes`: limit for request bodies and answers that have not been sent."""
        self.max_requests = max_requests
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.requests = 0
        self.pixels = 0
        self.bytes = 0

    def check(self) -> None:
        """Raise Overloaded if no request slot is free, before a body is read."""
        if self.requests >= self.max_requests:
            raise Overloaded(f"{self.requests} requests are in progress: try again in a moment")

    @contextmanager
    def request(self) -> Iterator[None]:
        """Occupy a request slot; raises Overloaded if none is free."""
        self.check()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def claim(self, pixels: int) -> Claim:
        """Reserve memory for a decoded image; raises Overloaded if the limit is reached.

        An image is always admitted when no other is in progress: its own size has
        been checked already.
        """
        if self.pixels and self.pixels + pixels > self.max_pixels:
            raise Overloaded(f"{self.pixels} pixels are in progress: try again in a moment")
        self.pixels += pixels
        return Claim(self, pixels)

    def hold(self, size: int, held: int = 0) -> None:
        """Count bytes of a body or an answer, until `release`; raises Overloaded at the limit.

        `held`: bytes of the same body or answer so far. A single one is always allowed. The last
        quarter is for small ones, so that a few large and slow ones do not block the others.
        """
        limit = self.max_bytes if held + size <= SMALL else self.max_bytes * 3 // 4
        if self.bytes > held and self.bytes + size > limit:
            raise Overloaded(
                f"{self.bytes} bytes of requests and answers are in progress: try again in a moment"
            )
        self.bytes += size

    @contextmanager
    def held(self, size: int, held: int = 0) -> Iterator[None]:
        """Count bytes while the block runs, as `hold` does."""
        self.hold(size, held)
        try:
            yield
        finally:
            self.release(size)

    def release(self, size: int) -> None:
        """Count bytes no longer."""
        self.bytes -= size


class Claim:
    """The reserved memory of one image: `with claim: ... await claim.work(pool, function)`.

    It is released when the last thread that works on the image has ended, which may
    be after the request.
    """

    def __init__(self, admission: Admission, pixels: int) -> None:
        self._admission = admission
        self._pixels = pixels
        self._holders = 0

    def __enter__(self) -> Self:
        self._holders += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    async def work(self, pool: Executor, function: Callable[[], Result]) -> Result:
        """Run a function in a worker thread; cancelled while it waits for one, it never runs."""
        return await self.result(pool.submit(function))

    async def result(self, future: Future[Result]) -> Result:
        """Wait for work on the image that another thread does; cancel it if cancelled."""
        self._holders += 1
        future.add_done_callback(partial(_call_in_loop, asyncio.get_running_loop(), self._release))
        return await asyncio.wrap_future(future)

    def _release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._admission.pixels -= self._pixels


def _call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None], _: object) -> None:
    with suppress(RuntimeError):  # the loop may be closed before the thread ends
        loop.call_soon_threadsafe(function)


class BodyLimit:
    """ASGI middleware: refuse request bodies that are too large or too slow.

    Checks Content-Length first, then counts the bytes as they arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        timeout_s: float,
        admission: Admission,
        *,
        stored: Mapping[str, int] | None = None,
        min_bytes_per_s: int = 0,
    ) -> None:
        """`stored`: other limits, of paths whose bodies go to a disk as they come.

        Such a body may take any time, if some of it comes every `timeout_s`.
        """
        self.stored = stored or {}
        self.app = app
        self.min_bytes_per_s = min_bytes_per_s
        self.admission = admission
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stored = self.stored.get(scope["path"])
        limit = stored or self.max_bytes
        received = 0
        began = asyncio.get_running_loop().time()
        until = began + self._patience_s(0)
        complete = False

        async def limited() -> Message:
            nonlocal received, complete, until
            if complete:  # from now on the application waits for the client to disconnect
                return await receive()
            if received == 0:
                _check(_content_length(scope), limit)
            message = await self._in_time(receive, until)
            complete = not message.get("more_body", False)
            size = len(message.get("body", b""))
            _check(received + size, limit)
            if stored is None:
                self.admission.hold(size, received)
                until = began + self._patience_s(received + size)
            else:
                until = asyncio.get_running_loop().time() + self.timeout_s
            received += size
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            if stored is None:
                self.admission.release(received)

    def _patience_s(self, received: int) -> float:
        """Return after how many seconds the next bytes must have come."""
        if not self.min_bytes_per_s:
            return self.timeout_s
        return min(self.timeout_s, GRACE_S + received / self.min_bytes_per_s)

    async def _in_time(self, receive: Receive, until: float) -> Message:
        try:
            async with asyncio.timeout_at(until):
                return await receive()
        except TimeoutError:
            raise BodyTimeout(
                f"the body was not complete after {self.timeout_s:g} s, or came with fewer than "
                f"{self.min_bytes_per_s} bytes per second: send it faster"
            ) from None


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise BodyTooLarge(f"a body may have at most {limit} bytes: send a smaller image")


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


class HeldResponse(Response):
    """An answer whose bytes count until the client has read them.

    The server would accept a large body as a whole. If it gets pieces, it waits for the client.
    """

    def __init__(
        self, content: bytes, headers: Mapping[str, str], media_type: str, admission: Admission
    ) -> None:
        """Raises AnswerTooLarge, or Overloaded if too many bytes are in progress."""
        super().__init__(content, 200, headers, media_type)
        if len(content) > admission.max_bytes:
            raise AnswerTooLarge(
                f"the answer has {len(content)} bytes, the limit is {admission.max_bytes}: "
                "request fewer outputs, or send a smaller image"
            )
        admission.hold(len(content))
        self._admission = admission

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            for first in range(0, max(1, len(self.body)), PIECE):
                piece, more = self.body[first : first + PIECE], first + PIECE < len(self.body)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        finally:
            self._admission.release(len(self.body))
