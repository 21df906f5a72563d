"""How long a connection may take to say what it wants, below anything that knows HTTP paths.

uvicorn bounds the idle time after an answer, but neither the time until a first request
nor that between two bytes of a header: enough connections of that kind are an attack
(slowloris). Bodies are bounded elsewhere, see `limits.BodyLimit`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service import problems
from service.errors import HeaderTimeout

log = logging.getLogger("service.http")


def with_header_timeout(seconds: float) -> type[asyncio.Protocol]:
    """The server's protocol, with a bound on the time until a request's headers are complete."""

    class Timed(ImpatientProtocol):
        timeout_s = seconds

    return Timed


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type] # chosen at run time
    """Whichever protocol uvicorn has, and a timer while no request is in progress."""

    timeout_s = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """The first request's headers are waited for."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes outside of a request in progress are headers, or what nobody wants to have."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            log.info("closing a connection without a request after %g s", self.timeout_s)
            self.transport.write(refusal(self.timeout_s))
            self.transport.close()


def refusal(timeout_s: float) -> bytes:
    """The whole answer, which no application has seen."""
    error = HeaderTimeout(
        f"the request's headers were not complete after {timeout_s:g} s: send them faster"
    )
    body = json.dumps(problems.fields(error)).encode()
    head = (
        f"HTTP/1.1 {error.status} Request Timeout\r\nContent-Type: {problems.MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
