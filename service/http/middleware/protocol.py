"""uvicorn's h11 protocol, extended for valid clients that uvicorn refuses.

It uses h11 even if httptools is installed: h11 limits the size of the headers, and it reads
the body of a request that offers an upgrade to HTTP/2, as Java's client does by default.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import unquote

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# A body of more pieces than this, each of a few bytes, takes long to parse.
MOST_CRUMBS, CRUMB_BYTES = 250, 32
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MOST_HEADER_BYTES, MOST_HEADERS = 32_768, 200
END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")
FIRST_PROBE_S, LAST_PROBE_S = 0.1, 5.0


class Connection(h11.Connection):
    """Refuses what takes long to parse: long headers, many of them, bodies in tiny chunks.

    64 KB of either take up to 50 ms, in which nobody else is served. h11 itself checks the size of
    headers only while they are incomplete.
    """

    _pieces = _bytes = 0  # of the body
    _lines = _head = 0  # of the headers; their bytes
    _tail = b""  # of the data before: the end of the headers may come in pieces

    def receive_data(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self.their_state is h11.IDLE:
            head = END_OF_HEADERS.split(self._tail + data, maxsplit=1)[0][len(self._tail) :]
            self._lines += head.count(b"\n")
            self._head += len(head)
            self._tail = (self._tail + data)[-3:]
        super().receive_data(data)

    def start_next_cycle(self) -> None:
        """Begin the next request, of which a part may have come with the one before."""
        super().start_next_cycle()
        come = self.trailing_data[0]
        end = END_OF_HEADERS.search(come)
        self._head = end.start() if end else len(come)
        self._lines = come.count(b"\n", 0, self._head)
        self._tail = come[-3:]

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what the client sent next; raises RemoteProtocolError."""
        if self.their_state is h11.IDLE and self._lines > MOST_HEADERS:
            raise h11.RemoteProtocolError(f"there are more than {MOST_HEADERS} headers")
        if self.their_state is h11.IDLE and self._head > MOST_HEADER_BYTES:
            raise h11.RemoteProtocolError(f"the headers have more than {MOST_HEADER_BYTES} bytes")
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = self._lines = self._head = 0
            self._tail = b""
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > MOST_CRUMBS and self._bytes < CRUMB_BYTES * self._pieces:
                raise h11.RemoteProtocolError(
                    f"the body comes in pieces of fewer than {CRUMB_BYTES} B"
                )
        return event


class Protocol(H11Protocol):
    """Answers clients that half-close the connection after the request.

    A half-close looks the same as a disconnect. To tell them apart the service sends interim
    answers, which every HTTP/1.1 client ignores (RFC 9110, 15.2). If the client has
    disconnected, sending fails, and its request is cancelled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Connection(h11.SERVER, MOST_HEADER_BYTES)
        self._half_closed = False
        self._probe_timer: asyncio.TimerHandle | None = None

    def eof_received(self) -> bool | None:  # type: ignore[override] # uvicorn always closes
        """Keep the connection open while a complete request is being answered."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            return None
        if self.scope["http_version"] != "1.1":  # HTTP/1.0 has no interim answers
            return None
        self._half_closed = True
        self._probe_later(FIRST_PROBE_S)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop probing."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Close a half-closed connection: no further request can arrive."""
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()

    def _probe_later(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._probe_timer = loop.call_later(seconds, self._probe, seconds)

    def _probe(self, waited_s: float) -> None:
        """Send an interim answer: a disconnected client resets the first, the next one fails."""
        if not self.transport.is_closing() and not self.cycle.response_started:
            self.transport.write(CONTINUE)
            self._probe_later(min(2 * waited_s, LAST_PROBE_S))

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: an offer to upgrade is not an error. It is answered over HTTP/1.1."""


class AbsoluteForm:
    """ASGI middleware: take the path out of a target like `http://host/segment`.

    Servers must accept this form (RFC 9112, 3.2.2). Clients send it if they are configured
    to use this service as a proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].lower().startswith(("http://", "https://")):
            raw = scope.get("raw_path") or scope["path"].encode()
            raw = b"/" + raw.split(b"//", 1)[1].partition(b"/")[2]
            scope = {**scope, "path": unquote(raw.decode("latin-1")), "raw_path": raw}
        await self.app(scope, receive, send)
