"""Check API keys (`Authorization: Bearer KEY`) and their rate limits, before the body is read."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import RateLimited, ServiceError, Unauthorized
from service.http import problems

# Open without a key: probes, the page that asks for a key, and the API documentation.
OPEN = frozenset({"/", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN |= {"/docs", "/openapi.json"}
OPEN_BELOW = ("/samples/", "/docs/")  # files that those pages load


class Bucket:
    """A token bucket: `per_minute` requests at once, refilled evenly over each minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = per_minute
        self._clock = clock
        self._tokens = float(per_minute)
        self._filled = clock()

    def take(self) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        now = self._clock()
        per_second = self._capacity / 60
        self._tokens = min(self._capacity, self._tokens + (now - self._filled) * per_second)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / per_second
        self._tokens -= 1
        return 0.0


class Keys:
    """ASGI middleware: require an API key and enforce its rate limit."""

    def __init__(self, app: ASGIApp, digests: tuple[str, ...], per_minute: int) -> None:
        self.app = app
        self._buckets = {digest: Bucket(per_minute) if per_minute else None for digest in digests}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            try:
                self._admit(scope)
            except ServiceError as error:
                await problems.answer(scope, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        bucket = self._buckets[self._known(_digest(scope))]
        wait_s = bucket.take() if bucket else 0.0
        if wait_s:
            raise RateLimited(
                "this key has reached its rate limit: send fewer requests", math.ceil(wait_s)
            )

    def _known(self, given: str) -> str:
        # Compare every digest in constant time: the delay must not reveal which one is close.
        found = [digest for digest in self._buckets if hmac.compare_digest(digest, given)]
        if not found:
            raise Unauthorized("send a valid API key as `Authorization: Bearer KEY`")
        return found[0]


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def _digest(scope: Scope) -> str:
    header = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, key = header.partition(b" ")
    return hashlib.sha256(key.strip()).hexdigest() if scheme.lower() == b"bearer" else ""
