"""Run the application on uvicorn, from the listening socket to the drained stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Literal

import uvicorn
from fastapi import FastAPI

from service.errors import StartupError
from service.http.middleware.timeouts import impatient
from service.settings import Settings

log = logging.getLogger("service")

# uvicorn's "auto" takes uvloop where another package happens to bring it, as Ray does for the
# tests: they would run another server than users. uvloop saves 0.05 ms of a request here.
LOOP: Literal["asyncio"] = "asyncio"


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow is done; raises StartupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise StartupError(f"--host {host} --port {port}: {error.strerror}") from None
    # Accepted connections inherit it. asyncio would set it only on sockets that were made with
    # a protocol number, which these are not; without it a body waits 40 ms behind its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    app: FastAPI, listener: socket.socket, settings: Settings, drain: Callable[[], None]
) -> int:
    """Serve until a signal ends it; 0 after a clean stop."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        loop=LOOP,
        http=impatient(settings.header_timeout_s, settings.send_timeout_s),
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
    )
    for stop in (signal.SIGTERM, signal.SIGINT):
        # After a clean stop uvicorn raises the signal once more, at the handlers it found.
        signal.signal(stop, lambda *_: None)
    host, port = listener.getsockname()[:2]
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server = DrainingServer(config, drain, settings.drain_delay_s)
    server.run(sockets=[listener])
    return 0 if server.started else 1


class DrainingServer(uvicorn.Server):
    """On the first signal turns readiness red and serves on for a while; on the second stops."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], delay_s: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._delay_s = delay_s
        self._signalled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM and SIGINT; runs in the main thread, so in the event loop."""
        if self._signalled or not self._delay_s:
            self._drain()
            super().handle_exit(sig, frame)
            return
        self._signalled = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._drain)
        loop.call_soon_threadsafe(loop.call_later, self._delay_s, self.handle_exit, sig, None)
        loop.call_soon_threadsafe(log.info, "draining for %g s", self._delay_s)
