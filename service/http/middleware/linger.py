"""Close a connection so that a client that still sends gets its answer.

A socket that is closed while bytes of its client are unread sends a reset, and on a reset the
client's system drops an answer that has arrived already (RFC 9112, 9.6). So the service ends only
its own side, and discards what comes until the client closes too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from service.http.middleware.pace import Pace


class LingeringTransport:
    """A transport of which `close` lingers if the client may still be sending a request."""

    def __init__(
        self,
        transport: asyncio.Transport,
        is_sending: Callable[[], bool],
        linger_s: float,
        pace: Pace,
    ) -> None:
        """`is_sending` is asked when the connection closes; `pace` limits what is discarded."""
        self._transport = transport
        self._is_sending = is_sending
        self._linger_s = linger_s
        self._pace = pace
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether the connection is closed, or has been answered for the last time."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """End this side and wait for the client, for `linger_s` at most; a second call closes."""
        if self.is_closing() or not self._is_sending():
            self._transport.close()
            return
        self.lingers = True
        self._transport.set_protocol(_Discard(self._transport, self._linger_s, self._pace))
        try:
            self._transport.write_eof()
        except OSError:  # the client has left
            self._transport.close()
        else:
            self._transport.resume_reading()


class _Discard(asyncio.Protocol):
    """Takes the place of a connection's protocol while it lingers."""

    def __init__(self, transport: asyncio.Transport, linger_s: float, pace: Pace) -> None:
        self._transport = transport
        self._protocol = transport.get_protocol()
        self._pace = pace
        self._timer = asyncio.get_running_loop().call_later(linger_s, transport.close)

    def data_received(self, data: bytes) -> None:
        discard(self._transport, len(data), self._pace)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._protocol.connection_lost(exc)


class _Reading(Protocol):
    """What can stop reading for a while: a transport, or uvicorn's control of its flow."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def discard(reading: _Reading, size: int, pace: Pace) -> None:
    """Count bytes that nobody reads: a megabyte costs as much as a refusal."""
    if wait_s := pace.wait_s(size / 2**20):
        reading.pause_reading()
        asyncio.get_running_loop().call_later(wait_s, reading.resume_reading)
