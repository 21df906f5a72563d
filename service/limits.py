"""Admission: bounds on requests, pixels and bytes, enforced before the work they bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, Overloaded


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

    @contextmanager
    def claim(self, pixels: int) -> Iterator[None]:
        """Hold the memory of a decoded image; raises Overloaded when there is none.

        A lone image is always let in: its size has been checked already.
        """
        if self.pixels and self.pixels + pixels > self.max_pixels:
            raise Overloaded(f"{self.pixels} pixels are in progress: try again in a moment")
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels


class BodyLimit:
    """ASGI middleware: refuses bodies over a limit, by Content-Length or while they stream in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            if received == 0:
                self._check(_content_length(scope))
            message = await receive()
            received += len(message.get("body", b""))
            self._check(received)
            return message

        await self.app(scope, limited, send)

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise BodyTooLarge(f"the limit is {self.max_bytes} bytes: send a smaller image")


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
