"""Limit requests and pixels in progress, and the size and duration of request bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Self, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeout, BodyTooLarge, Overloaded

Result = TypeVar("Result")


class Admission:
    """Counts requests and pixels in progress, and refuses more than the limits."""

    def __init__(self, max_requests: int, max_pixels: int) -> None:
        self.max_requests = max_requests
        self.max_pixels = max_pixels
        self.requests = 0
        self.pixels = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Occupy a request slot; raises Overloaded if none is free."""
        if self.requests >= self.max_requests:
            raise Overloaded(f"{self.requests} requests are in progress: try again in a moment")
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
        future = pool.submit(function)
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

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0
        until = asyncio.get_running_loop().time() + self.timeout_s
        complete = False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:  # from now on the application waits for the client to disconnect
                return await receive()
            if received == 0:
                self._check(_content_length(scope))
            message = await self._in_time(receive, until)
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            self._check(received)
            return message

        await self.app(scope, limited, send)

    async def _in_time(self, receive: Receive, until: float) -> Message:
        try:
            async with asyncio.timeout_at(until):
                return await receive()
        except TimeoutError:
            raise BodyTimeout(
                f"the body was not complete after {self.timeout_s:g} s: send it faster"
            ) from None

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise BodyTooLarge(
                f"a body may have at most {self.max_bytes} bytes: send a smaller image"
            )


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
