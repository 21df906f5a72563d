"""Check API keys (`Authorization: Bearer KEY`) and their rate limits, before the body is read."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, RateLimited, ServiceError, Unauthorized
from service.http import problems
from service.http.middleware.metrics_port import ON_METRICS_PORT

# Open without a key: probes, the page that asks for a key, and the API documentation.
OPEN = frozenset({"/", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN |= {"/docs", "/openapi.json"}
OPEN_BELOW = ("/samples/", "/docs/")  # files that those pages load

# Headers of browsers and proxies, which send requests on behalf of others.
ON_BEHALF = frozenset(
    {b"origin", b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"}
)


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

    def __init__(
        self, app: ASGIApp, digests: tuple[str, ...], admins: tuple[str, ...], per_minute: int
    ) -> None:
        """`admins`: digests of keys that may do everything and have no rate limit."""
        self.app = app
        self._buckets = {digest: Bucket(per_minute) if per_minute else None for digest in digests}
        self._buckets |= dict.fromkeys(admins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_free = scope["type"] != "http" or scope.get(ON_METRICS_PORT) or is_open(scope["path"])
        if not is_free:
            try:
                self._admit(scope)
            except ServiceError as error:
                await problems.answer(scope, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        bucket = self._buckets[self._known(digest_of_key(scope))]
        # Only POST counts: reading models and metrics is free.
        wait_s = bucket.take() if bucket and scope["method"] == "POST" else 0.0
        if wait_s:
            raise RateLimited(
                "this key has reached its rate limit: send fewer requests", math.ceil(wait_s)
            )

    def _known(self, given: str) -> str:
        found = _matching(self._buckets, given)
        if not found:
            raise Unauthorized("send a valid API key as `Authorization: Bearer KEY`")
        return found[0]


def check_admin(scope: Scope, admins: tuple[str, ...]) -> None:
    """Raise Unauthorized or Forbidden unless the client may reload models.

    If there are admin keys, it needs one. Otherwise it must be a program on this host, and
    neither a page in a browser, which sends Origin, nor a proxy.
    """
    if admins:
        given = digest_of_key(scope)
        if not given:
            raise Unauthorized("send an admin key as `Authorization: Bearer KEY`")
        if not _matching(admins, given):
            raise Forbidden("this key may not reload models: send an admin key")
        return
    headers = {name for name, _ in scope["headers"]}
    if not _is_loopback(scope) or not headers.isdisjoint(ON_BEHALF):
        raise Forbidden(
            "without --admin-keys, models can be reloaded only from the service's own host and "
            "without a proxy"
        )


def _is_loopback(scope: Scope) -> bool:
    try:
        address = ip_address((scope.get("client") or ("",))[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _matching(digests: Iterable[str], given: str) -> list[str]:
    # Compare every digest in constant time: the delay must not reveal which one is close.
    return [digest for digest in digests if hmac.compare_digest(digest, given)]


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def digest_of_key(scope: Scope) -> str:
    """Return the SHA-256 of the key that a request carries; empty if it carries none."""
    header = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, key = header.partition(b" ")
    return hashlib.sha256(key.strip()).hexdigest() if scheme.lower() == b"bearer" else ""
