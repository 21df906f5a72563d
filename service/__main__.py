"""`python -m service`: serve the models of a folder over HTTP.

`python -m service doctor` says what is wrong; `python -m service build-engines` makes the
TensorRT engines that `--device tensorrt` starts on, with the same flags as the service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from service import doctor, logs
from service.errors import StartupError
from service.http.app import create_app
from service.http.middleware.timeouts import impatient
from service.inference import models
from service.settings import Settings, explain, wants_traces

if TYPE_CHECKING:
    from service.http.telemetry.tracing import Tracing

log = logging.getLogger("service")


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop, 1 when it cannot start, 2 for usage."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["doctor"]:
        return doctor.main(arguments[1:])
    building = arguments[:1] == ["build-engines"]
    if building:
        arguments = ["--device", "tensorrt", *arguments[1:]]
    try:
        settings = CliApp.run(Settings, cli_args=arguments)
    except (ValidationError, SettingsError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    try:
        check_runtime()
        if building:
            models.build_engines(settings)
            return 0
        with listen(settings.host, settings.port) as listener:
            # Process 1 of a container has no default: a stop while loading would go unheard.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            tracing = start_tracing() if wants_traces(os.environ) else None
            loaded = models.load(settings)
            app = create_app(settings, loaded, tracing)
            return serve(app, listener, settings, loaded.drain)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def start_tracing() -> Tracing:
    """Send traces, as the OTEL_* variables say; raises StartupError without the libraries."""
    try:
        from service.http.telemetry import tracing  # noqa: PLC0415 - not loaded unless it is asked for
    except ImportError as error:
        raise StartupError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but {error}: install the otel extra, "
            "or set OTEL_SDK_DISABLED=true"
        ) from None
    return tracing.Tracing()


def check_runtime() -> None:
    """Refuse to serve with two ONNX Runtimes in one place; raises StartupError."""
    if problem := doctor.wheel_problem(doctor.installed_wheels(distributions())):
        raise StartupError(problem)


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow is done; raises StartupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise StartupError(f"--host {host} --port {port}: {error.strerror}") from None


def serve(
    app: FastAPI, listener: socket.socket, settings: Settings, drain: Callable[[], None]
) -> int:
    """Serve until a signal ends it; 0 after a clean stop."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
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


if __name__ == "__main__":
    raise SystemExit(main())
