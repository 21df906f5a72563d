"""uvicorn's HTTP/1.1 on h11, for clients that h11 allows and uvicorn turns away.

h11 whether or not httptools is installed: it bounds the size of a request's headers, and
it reads a body behind an offer to upgrade to HTTP/2, which Java's client makes by default.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST_PROBE_S, LAST_PROBE_S = 0.1, 5.0


class Protocol(H11Protocol):
    """Answers a client that has closed its own direction, unless it has left altogether.

    Both look the same: the end of what it sends. An interim answer tells them apart, which
    every HTTP/1.1 client passes over (RFC 9110, 15.2): a client that has left refuses it, and
    its work is dropped.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._half_closed = False
        self._probe_timer: asyncio.TimerHandle | None = None

    def eof_received(self) -> bool | None:  # type: ignore[override] # uvicorn closes always
        """Keep the connection while a whole request is being answered."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            return None
        if self.scope["http_version"] != "1.1":  # 1.0 knows no interim answers
            return None
        self._half_closed = True
        self._probe_later(FIRST_PROBE_S)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Nothing more can come from a client that has closed its direction."""
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()

    def _probe_later(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._probe_timer = loop.call_later(seconds, self._probe, seconds)

    def _probe(self, waited_s: float) -> None:
        """The first interim answer is refused by a client that has left, the next one fails."""
        if not self.transport.is_closing() and not self.cycle.response_started:
            self.transport.write(CONTINUE)
            self._probe_later(min(2 * waited_s, LAST_PROBE_S))

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade is an offer, not a fault: answer over HTTP/1.1 without a word in the log."""


class AbsoluteForm:
    """ASGI middleware: takes the path out of a target like `http://host/segment`.

    Servers must read it, RFC 9112, 3.2.2; clients send it that take this service for a proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].lower().startswith(("http://", "https://")):
            raw = scope.get("raw_path") or scope["path"].encode()
            raw = b"/" + raw.split(b"//", 1)[1].partition(b"/")[2]
            scope = {**scope, "path": unquote(raw.decode("latin-1")), "raw_path": raw}
        await self.app(scope, receive, send)
