"""Limit the requests that one client has in progress, so that it cannot take all slots."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import RateLimited
from service.http import problems

SUBNET_BITS = 64  # of IPv6: what one customer of a provider gets


class Shares:
    """ASGI middleware: answer 429 to a client with too many requests in progress.

    A client is an API key or, without keys, an address. The whole request counts: also while
    its body comes in and while its answer is read.
    """

    def __init__(self, app: ASGIApp, most: int, *, by_key: bool) -> None:
        self.app = app
        self._most = most
        self._by_key = by_key
        self._in_progress = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        client = _key(scope) if self._by_key else _network(scope)
        if self._in_progress[client] >= self._most:
            error = RateLimited(
                f"{self._most} of your requests are in progress: wait for their answers", 1
            )
            await problems.answer(scope, error)(scope, receive, send)
            return
        self._in_progress[client] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._in_progress[client] -= 1
            if not self._in_progress[client]:
                del self._in_progress[client]


def _key(scope: Scope) -> str:
    return str(dict(scope["headers"]).get(b"authorization", b"").partition(b" ")[2].strip())


def _network(scope: Scope) -> str:
    """Return the client's address, of IPv6 the network."""
    text = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(text)
    except ValueError:  # a Unix socket, or the name that a proxy gave
        return str(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(int(address) >> SUBNET_BITS)
    return str(getattr(address, "ipv4_mapped", None) or address)
