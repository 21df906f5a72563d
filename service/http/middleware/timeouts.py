"""Close connections whose client sends headers, or reads answers, too slowly.

uvicorn limits only the idle time between requests. Many connections that send headers byte
by byte (slowloris) or do not read their answers (slow read) would exhaust the service.
`limits.BodyLimit` limits the time of request bodies.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import h11
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import HeaderTimeout, InvalidRequest, Overloaded, ServiceError
from service.http import problems
from service.http.middleware.limits import ABORT
from service.http.middleware.linger import LingeringTransport, discard
from service.http.middleware.pace import Pace
from service.http.middleware.protocol import (
    CRUMB_BYTES,
    MOST_HEADER_BYTES,
    MOST_HEADERS,
    Protocol,
)

log = logging.getLogger("service.http")

LIMITS = (
    f"it has more than {MOST_HEADERS} headers, more than {MOST_HEADER_BYTES} bytes of them, or a "
    f"body in chunks of fewer than {CRUMB_BYTES} bytes"
)


def protocol_with_timeouts(
    header_timeout_s: float,
    send_timeout_s: float,
    min_bytes_per_s: int = 0,
    max_connections: int = 0,
    refusals_per_s: float = 0.0,
) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class with these timeouts and limits."""

    class Configured(TimeoutProtocol):
        pass

    Configured.header_timeout_s = header_timeout_s
    Configured.send_timeout_s = send_timeout_s
    Configured.min_bytes_per_s = min_bytes_per_s
    Configured.max_connections = max_connections
    Configured.pace = Pace(refusals_per_s)
    return Configured


async def _abortable(
    app: ASGIApp, abort: Callable[[], None], scope: Scope, receive: Receive, send: Send
) -> None:
    """Call an application with a function that ends its connection without sending the rest."""
    scope[ABORT] = abort
    await app(scope, receive, send)


class TimeoutProtocol(Protocol):
    """Our protocol with one timer for request headers and one for sending answers."""

    header_timeout_s = 10.0  # to complete the headers of a request
    send_timeout_s = 60.0  # for which a client with bytes to read may read none
    min_bytes_per_s = 0  # at which the client must read
    max_connections = 0  # 0: no limit
    pace = Pace(0)  # of answers to what is not HTTP, and of reading what nobody needs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_since = 0.0  # on the loop's clock
        self._is_refused = False  # what the client sent is not HTTP
        self._timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override] # as uvicorn does: the transport is TCP
        self, transport: asyncio.Transport
    ) -> None:
        """Start the header timer for the first request."""
        self._lingering = LingeringTransport(
            transport, self._is_sending, self.header_timeout_s, self.pace
        )
        super().connection_made(cast("asyncio.Transport", self._lingering))
        self.app = partial(_abortable, self.app, transport.abort)
        self._idle_since = asyncio.get_running_loop().time()
        self._start_timer()
        if self.max_connections and len(self.connections) > self.max_connections:
            self._make_room()

    def on_response_complete(self) -> None:
        """Note since when the connection is idle."""
        super().on_response_complete()
        self._idle_since = asyncio.get_running_loop().time()

    def send_400_response(self, msg: str) -> None:
        """Answer with a problem if the request is not HTTP or exceeds the parser's limits."""
        del msg  # uvicorn's text, the same for every reason
        if self._is_refused:
            return
        self._is_refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        wait_s = self.pace.wait_s()
        if wait_s:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(wait_s, self._send_400_now)
        else:
            self._send_400_now()

    def _send_400_now(self) -> None:
        if not self.transport.is_closing():
            self._end(InvalidRequest(f"the request is not valid HTTP/1.1, or {LIMITS}"))

    def shutdown(self) -> None:
        """Close the connection when nothing is left to answer."""
        if self._lingering.lingers:
            self.transport.close()
        elif self._is_refused:
            self._send_400_now()
        else:
            super().shutdown()

    def _make_room(self) -> None:
        """Close the connection that is idle for longest; with none idle, refuse this one."""
        others = (each for each in self.connections if isinstance(each, TimeoutProtocol))
        idle = [each for each in others if each is not self and each.is_idle]
        if idle:
            min(idle, key=lambda each: each._idle_since).transport.close()
            return
        self.transport.write(
            _complete(Overloaded(f"{self.max_connections} connections are open: try again later"))
        )
        self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress, and the connection can be closed."""
        if self.transport.is_closing():
            return self._lingering.lingers
        return self.cycle is None or self.cycle.response_complete

    def _is_sending(self) -> bool:
        """Whether the client may still send a request that has its answer."""
        return self.conn.their_state in {h11.SEND_BODY, h11.ERROR}

    def data_received(self, data: bytes) -> None:
        """Start the header timer when bytes arrive between requests; stop it within a request."""
        has_answer = self._is_sending() and self.conn.our_state is h11.DONE
        super().data_received(data)
        if self._is_refused:
            return
        if has_answer:  # the rest of a body that was refused
            discard(self.flow, len(data), self.pace)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif has_answer and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._stop_timer()
            self._start_keep_alive()
        elif self._timer is None:
            self._start_timer()

    def _start_keep_alive(self) -> None:
        """Close the connection if nothing comes for a while; uvicorn stopped this at each byte."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel both timers."""
        self._stop_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the send timer: the client reads more slowly than the service sends."""
        super().pause_writing()
        self._watch_sending(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Stop the send timer: the client has read nearly everything."""
        self._stop_send_timer()
        super().resume_writing()

    def _watch_sending(self, unsent: int) -> None:
        loop = asyncio.get_running_loop()
        self._send_timer = loop.call_later(self.send_timeout_s, self._check_progress, unsent)

    def _check_progress(self, unsent: int) -> None:
        now = self.transport.get_write_buffer_size()
        least = max(1, min(unsent, round(self.min_bytes_per_s * self.send_timeout_s)))
        if unsent - now >= least:
            self._watch_sending(now)
            return
        read, seconds = unsent - now, self.send_timeout_s
        log.info("closing a connection whose client read %d bytes in %g s", read, seconds)
        self.transport.abort()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.header_timeout_s, self._refuse)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            log.info(
                "closing a connection that sent no complete headers within %g s",
                self.header_timeout_s,
            )
            seconds = f"{self.header_timeout_s:g} s"
            self._end(
                HeaderTimeout(
                    f"the request headers were not complete after {seconds}: send them faster"
                )
            )

    def _end(self, error: ServiceError) -> None:
        """Close the connection, with an answer unless the request has one already."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.write(_complete(error))
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application must not write an answer of its own
            self.cycle.message_event.set()


def _complete(error: ServiceError) -> bytes:
    """Return a complete response, such as the application would send for the error."""
    request_id = uuid.uuid4().hex  # the client's own has not been read
    body = json.dumps({**problems.fields(error), "request_id": request_id}).encode()
    head = {
        "Date": formatdate(usegmt=True),
        "Content-Type": problems.MEDIA_TYPE,
        "Content-Length": len(body),
        "X-Request-ID": request_id,
        "Connection": "close",
    }
    if error.retry_after_s is not None:
        head["Retry-After"] = error.retry_after_s
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
    return f"{status}{lines}\r\n".encode() + body
