"""Run the application on uvicorn: listen, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.errors import StartupError
from service.http.middleware.timeouts import protocol_with_timeouts
from service.settings import Settings

log = logging.getLogger("service")

# uvicorn's "auto" uses uvloop if another package, such as Ray, has installed it; tests would then
# run another event loop than users. uvloop would save 0.05 ms per request. On Windows,
# uvicorn's "asyncio" chooses a loop of another kind, whose turns are not measured.
LOOP = "asyncio" if sys.platform == "win32" else "service.http.event_loop:MeasuredLoop"


OTHER_FILES = 512  # that the service opens besides connections
END_MARGIN_S = 5.0  # to stop the engines, after --shutdown-timeout-s for the requests


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, before the slow loading of models; raises StartupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise StartupError(f"--host {host} --port {port}: {error.strerror}") from None
    # Accepted connections inherit this. asyncio does not set it on sockets that were created
    # without a protocol number; without it a body arrives 40 ms after its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    app: FastAPI, listeners: list[socket.socket], settings: Settings, drain: Callable[[], None]
) -> int:
    """Serve until SIGTERM or SIGINT. Return 0 after a clean stop."""
    _allow_open_files(settings.max_connections)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        loop=LOOP,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        ws="none",  # else a library that happens to be installed would take upgrades
        http=protocol_with_timeouts(
            settings.header_timeout_s,
            settings.send_timeout_s,
            settings.min_bytes_per_s,
            settings.max_connections,
            settings.refusals_per_s,
        ),
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
    )
    for stop in (signal.SIGTERM, signal.SIGINT):
        # After a clean stop uvicorn raises the signal again, for the handlers set before it.
        signal.signal(stop, lambda *_: None)
    for listener in listeners:
        host, port = listener.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    watchdog = Watchdog(settings.shutdown_timeout_s + END_MARGIN_S)
    server = DrainingServer(config, drain, settings.drain_delay_s, on_stop=watchdog.start)
    server.run(sockets=listeners)
    watchdog.code = 0
    return 0 if server.started else 1


def _allow_open_files(connections: int) -> None:
    """Let the process open a file for each connection, as far as the system allows."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Watchdog:
    """End the process if it still runs long after it should have stopped.

    At exit Python waits for all threads, and work inside a C library cannot be interrupted.
    """

    def __init__(self, timeout_s: float) -> None:
        self.code = 1  # set to 0 when all requests have been answered
        self._timeout_s = timeout_s
        # A signal handler uses it: this is the only queue whose `put` is reentrant.
        self._started = queue.SimpleQueue[None]()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def start(self) -> None:
        """Begin to count."""
        self._started.put(None)

    def _watch(self) -> None:
        self._started.get()
        time.sleep(self._timeout_s)
        log.warning("work still runs %g s after the signal to stop: ending it", self._timeout_s)
        logging.shutdown()
        os._exit(self.code)


class DrainingServer(uvicorn.Server):
    """Drains on the first signal: /readyz answers 503 while requests are served; then stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Callable[[], None],
        delay_s: float,
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._on_stop = on_stop
        self._delay_s = delay_s
        self._signalled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT. Runs in the main thread, which is the event loop's."""
        if self._signalled or not self._delay_s:
            self._drain()
            self._on_stop()
            super().handle_exit(sig, frame)
            return
        self._signalled = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._drain)
        loop.call_soon_threadsafe(loop.call_later, self._delay_s, self.handle_exit, sig, None)
        loop.call_soon_threadsafe(log.info, "draining for %g s", self._delay_s)
