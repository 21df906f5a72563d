"""How long a connection may take to ask, and to take its answer; below all HTTP paths.

uvicorn bounds the idle time after an answer, but not the time until a first request, nor
that between two bytes of a header, nor how long an answer waits for a client that does not
read: enough connections of either kind are an attack (slowloris, slow read). Bodies of
requests are bounded elsewhere, see `limits.BodyLimit`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import HeaderTimeout
from service.http import problems

log = logging.getLogger("service.http")


def impatient(header_timeout_s: float, send_timeout_s: float) -> type[asyncio.Protocol]:
    """The server's protocol, with bounds on what it waits for."""

    class Impatient(ImpatientProtocol):
        pass

    Impatient.header_timeout_s = header_timeout_s
    Impatient.send_timeout_s = send_timeout_s
    return Impatient


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol on h11, with a timer for headers and one for answers.

    h11 whether or not httptools is installed: h11 bounds the size of a request's headers,
    httptools does not.
    """

    header_timeout_s = 10.0  # until the headers are complete, while no request is in progress
    send_timeout_s = 60.0  # without a byte taken by the client, while there are some for it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override] # as in uvicorn: it is TCP's
        self, transport: asyncio.Transport
    ) -> None:
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
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More is to be sent than the client takes."""
        super().pause_writing()
        self._watch_sending(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has taken all but a little."""
        self._stop_send_timer()
        super().resume_writing()

    def _watch_sending(self, unsent: int) -> None:
        loop = asyncio.get_running_loop()
        self._send_timer = loop.call_later(self.send_timeout_s, self._expect_less, unsent)

    def _expect_less(self, unsent: int) -> None:
        now = self.transport.get_write_buffer_size()
        if now < unsent:
            self._watch_sending(now)
            return
        log.info("closing a connection that took nothing for %g s", self.send_timeout_s)
        self.transport.abort()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.header_timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            log.info("closing a connection without a request after %g s", self.header_timeout_s)
            self.transport.write(refusal(self.header_timeout_s))
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
