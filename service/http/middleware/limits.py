"""Limit requests, pixels and bytes in progress, and the size and duration of request bodies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Self, TypeVar

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeout, BodyTooLarge, Overloaded, check_answer

log = logging.getLogger("service.http")

Result = TypeVar("Result")

SMALL = 1024 * 1024  # bytes of a small body or answer, as most photos and masks are
GRACE_S = 5.0  # before the minimum rate applies to sending a body and to reading an answer
# Bytes of an answer passed to the server at once. A client that reads fewer in GRACE_S may lose
# its answer when others need the memory.
PIECE = 256 * 1024
# Keys in the ASGI scope: bytes of the request's body that count; a function that ends the
# connection at once.
BODY_BYTES, ABORT = "body_bytes", "abort"


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
        self._readings: set[Reading] = set()

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

    def hold(self, size: int, held: int = 0, own: int = 0) -> None:
        """Count bytes of a body or an answer, until `release`; raises Overloaded at the limit.

        `held`: bytes of the same body or answer so far; `own`: other bytes of the same request. A
        request that is alone is always allowed. The last quarter is for small bodies and answers,
        so that a few large and slow ones do not block the others.
        """
        limit = self.max_bytes if held + size <= SMALL else self.max_bytes * 3 // 4
        if self.bytes + size > limit:
            self._drop_slow_readers(self.bytes + size - limit)
        if self.bytes > held + own and self.bytes + size > limit:
            raise Overloaded(
                f"{self.bytes} bytes of requests and answers are in progress: try again in a moment"
            )
        self.bytes += size

    @contextmanager
    def held(self, size: int, held: int = 0, own: int = 0) -> Iterator[None]:
        """Count bytes while the block runs, as `hold` does."""
        self.hold(size, held, own)
        try:
            yield
        finally:
            self.release(size)

    def release(self, size: int) -> None:
        """Stop counting bytes that `hold` counted."""
        self.bytes -= size

    def _drop_slow_readers(self, size: int) -> None:
        """Free at least `size` bytes by dropping answers that are read slowly, slowest first."""
        now = time.monotonic()
        for each in sorted(self._readings, key=lambda reading: reading.taken_at):
            if size <= 0 or now - each.taken_at < GRACE_S:
                return
            log.info("dropped an answer of %d bytes: the client read too slowly", each.size)
            size -= each.size
            self._readings.discard(each)
            each.drop()

    @contextmanager
    def reading(self, size: int, abort: Callable[[], object] | None) -> Iterator[Reading]:
        """Watch an answer of `size` bytes, which are held, while it is sent; then release them.

        `abort` ends its connection; without it the answer is never dropped.
        """
        reading = Reading(self, size, abort or (lambda: None))
        if abort is not None:
            self._readings.add(reading)
        try:
            yield reading
        finally:
            self._readings.discard(reading)
            reading.end()

    @contextmanager
    def growing(self, own: int = 0) -> Iterator[Callable[[int], None]]:
        """Give a function that adds bytes to an answer; all of them count until the block ends.

        The function raises AnswerTooLarge, or Overloaded as `hold` does.
        """
        size = 0

        def add(more: int) -> None:
            nonlocal size
            check_answer(size + more, self.max_bytes)
            self.hold(more, size, own)
            size += more

        try:
            yield add
        finally:
            self.release(size)


class Reading:
    """An answer that is being sent."""

    def __init__(self, admission: Admission, size: int, abort: Callable[[], object]) -> None:
        self.size = size
        self.taken_at = time.monotonic()  # when the server took the last piece
        self._admission = admission
        self._abort = abort
        self._held = True

    def taken(self) -> None:
        """Note that the server has taken a piece."""
        self.taken_at = time.monotonic()

    def drop(self) -> None:
        """End the connection to free its memory."""
        self.end()
        self._abort()

    def end(self) -> None:
        """Stop counting its bytes."""
        if self._held:
            self._held = False
            self._admission.release(self.size)


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
        """`stored`: other limits for paths whose bodies are written to the disk as they arrive.

        Such a body may take any time, as long as some bytes arrive every `timeout_s`.
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
                _check(content_length(scope), limit)
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
            scope[BODY_BYTES] = received if stored is None else 0
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            if stored is None:
                self.admission.release(received)

    def _patience_s(self, received: int) -> float:
        """Return the seconds within which the next bytes must arrive."""
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


def content_length(scope: Scope) -> int:
    """Return the size of a body as its headers declare it, 0 if they do not."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


class HeldResponse(Response):
    """An answer whose bytes count until the client has read them.

    The server would accept a large body as a whole. If it gets pieces, it waits for the client.
    """

    def __init__(
        self,
        content: bytes,
        headers: Mapping[str, str],
        media_type: str,
        admission: Admission,
        scope: Scope,
    ) -> None:
        """Raises AnswerTooLarge, or Overloaded if too many bytes are in progress."""
        super().__init__(content, 200, headers, media_type)
        check_answer(len(content), admission.max_bytes)
        admission.hold(len(content), own=scope.get(BODY_BYTES, 0))
        self._admission = admission

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the answer."""
        with self._admission.reading(len(self.body), scope.get(ABORT)) as reading:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            for first in range(0, max(1, len(self.body)), PIECE):
                piece, more = self.body[first : first + PIECE], first + PIECE < len(self.body)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
                reading.taken()
