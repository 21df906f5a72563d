"""API keys and their quota: `Authorization: Bearer KEY`, checked before anything is read."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import RateLimited, ServiceError, Unauthorized
from service.http import problems

# What probes and a browser that has no key yet must reach.
OPEN = frozenset({"/", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN |= {"/docs", "/openapi.json"}  # how to ask is no secret
OPEN_BELOW = ("/samples/", "/docs/")  # the photos of the page, the files of the other one


class Bucket:
    """A token bucket: `per_minute` requests at once, refilled evenly over each minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = per_minute
        self._clock = clock
        self._tokens = float(per_minute)
        self._filled = clock()

    def take(self) -> float:
        """Take one token, or say in how many seconds there will be one; 0 when taken."""
        now = self._clock()
        per_second = self._capacity / 60
        self._tokens = min(self._capacity, self._tokens + (now - self._filled) * per_second)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / per_second
        self._tokens -= 1
        return 0.0


class Keys:
    """ASGI middleware: lets in who holds a key, within its quota."""

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
            raise RateLimited("this key's quota is used up: send less", math.ceil(wait_s))

    def _known(self, given: str) -> str:
        # Every digest is compared, in constant time: the answer's delay tells nothing.
        found = [digest for digest in self._buckets if hmac.compare_digest(digest, given)]
        if not found:
            raise Unauthorized("send a key of this service as `Authorization: Bearer KEY`")
        return found[0]


def is_open(path: str) -> bool:
    """Whether a path is served without a key."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def _digest(scope: Scope) -> str:
    header = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, key = header.partition(b" ")
    return hashlib.sha256(key.strip()).hexdigest() if scheme.lower() == b"bearer" else ""
