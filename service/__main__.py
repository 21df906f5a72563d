"""`python -m service`: serve the models in a folder over HTTP.

`python -m service doctor` checks the installation. `python -m service build-engines` builds
the TensorRT engines for `--device tensorrt` and takes the same flags as the service.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

import service
from service import doctor, logs
from service.decoders import processes
from service.errors import StartupError
from service.http.app import create_app
from service.http.server import listen, serve
from service.inference import models
from service.settings import Settings, from_command_line, wants_traces, wrong_settings

if TYPE_CHECKING:
    from service.http.telemetry.tracing import Tracing

log = logging.getLogger("service")


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Return 0 after a clean stop, 1 on failure, 2 for usage."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["doctor"]:
        return doctor.main(arguments[1:])
    if arguments == ["--version"]:
        print(f"deeplab {service.version()}")
        return 0
    building = arguments[:1] == ["build-engines"]
    if building:
        arguments = ["--device", "tensorrt", *arguments[1:]]
    try:
        settings = from_command_line(Settings, arguments)
    except (ValidationError, SettingsError) as error:
        print(f"error: {wrong_settings(error)}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    try:
        doctor.check_runtime()
        if building:
            models.build_engines(settings)
            return 0
        with ExitStack() as open_ports:
            ports = [settings.port, settings.metrics_port]
            if settings.grpc_port is not None:  # gRPC opens its own port after the models load
                listen(settings.host, settings.grpc_port).close()
            listeners = [
                open_ports.enter_context(listen(settings.host, port))
                for port in ports
                if port is not None
            ]
            # Process 1 of a container ignores SIGTERM by default: handle it while models load.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            tracing = start_tracing() if wants_traces(os.environ) else None
            beside = start_grpc(settings) if settings.grpc_port is not None else None
            decoders = processes.start(settings.decoders, settings.max_pixels)
            loaded = models.load(settings)
            app = create_app(settings, loaded, tracing, decoders, beside)
            return serve(app, listeners, settings, loaded.drain)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def start_grpc(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a context manager that serves gRPC; raises StartupError without the libraries."""
    try:
        from service.rpc.server import serving  # noqa: PLC0415 - loaded only with --grpc-port
    except ImportError as error:
        raise StartupError(f"--grpc-port: {error}: install the grpc extra") from None
    return partial(serving, settings=settings)


def start_tracing() -> Tracing:
    """Set up tracing from the OTEL_* variables; raises StartupError without the libraries."""
    try:
        from service.http.telemetry import tracing  # noqa: PLC0415 - loaded only when tracing is on
    except ImportError as error:
        raise StartupError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but {error}: install the otel extra, "
            "or set OTEL_SDK_DISABLED=true"
        ) from None
    return tracing.Tracing()


if __name__ == "__main__":
    raise SystemExit(main())
