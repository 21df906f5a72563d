"""Admission: bounds on requests, pixels and bytes, enforced before the work they bound."""

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
    """Counts what is in progress; refuses what would be too much."""

    def __init__(self, max_requests: int, max_pixels: int) -> None:
        self.max_requests = max_requests
        self.max_pixels = max_pixels
        self.requests = 0
        self.pixels = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Hold one request's place; raises Overloaded when there is none."""
        if self.requests >= self.max_requests:
            raise Overloaded(f"{self.requests} requests are in progress: try again in a moment")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def claim(self, pixels: int) -> Claim:
        """Take the memory of a decoded image; raises Overloaded when there is none.

        A lone image is always let in: its size has been checked already.
        """
        if self.pixels and self.pixels + pixels > self.max_pixels:
            raise Overloaded(f"{self.pixels} pixels are in progress: try again in a moment")
        self.pixels += pixels
        return Claim(self, pixels)


class Claim:
    """The memory of one image: `with claim: ... await claim.work(pool, function)`.

    It is held until the last thread that works on the image has ended, even if
    the request that asked for it is long gone.
    """

    def __init__(self, admission: Admission, pixels: int) -> None:
        self._admission = admission
        self._pixels = pixels
        self._holders = 0

    def __enter__(self) -> Self:
        self._holders += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    async def work(self, pool: Executor, function: Callable[[], Result]) -> Result:
        """Run a function in a worker thread; cancelled before its turn, it never runs."""
        future = pool.submit(function)
        self._holders += 1
        future.add_done_callback(partial(_in_loop, asyncio.get_running_loop(), self._let_go))
        return await asyncio.wrap_future(future)

    def _let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._admission.pixels -= self._pixels


def _in_loop(loop: asyncio.AbstractEventLoop, then: Callable[[], None], _: object) -> None:
    with suppress(RuntimeError):  # the loop may have been closed before the thread ended
        loop.call_soon_threadsafe(then)


class BodyLimit:
    """ASGI middleware: refuses bodies that are too large or too slow.

    The size is checked against Content-Length, and while the body streams in.
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
            if complete:  # what follows is the wait for the client's end
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
            raise BodyTooLarge(f"the limit is {self.max_bytes} bytes: send a smaller image")


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
