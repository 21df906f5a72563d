"""Start servers as separate processes, for demos and measurements.

They use the interpreter of the serving environment, which has the packages of the
container image. The development environment has another build of ONNX Runtime.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

PYTHON_VARIABLE = "DEEPLAB_SERVE_PYTHON"  # set by the Makefile
START_TIMEOUT_S = 120
POLL_S = 0.05


def python() -> str:
    """Return the interpreter for servers: DEEPLAB_SERVE_PYTHON, or else the running one.

    Raises SystemExit if the variable names no executable file.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    if not chosen:
        return sys.executable
    if not os.access(chosen, os.X_OK):
        raise SystemExit(f"{PYTHON_VARIABLE}={chosen}: no such program; make it with `make serve`")
    return chosen


@dataclass(frozen=True)
class Server:
    """A server that answers `/readyz` with 200."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid


@contextmanager
def service(models: Path, *flags: str, log: IO[bytes] | None = None) -> Iterator[Server]:
    """Run `python -m service` on a folder of models and a free port; stop it with SIGTERM."""
    with module("service", "--models", str(models), *flags, log=log, program=python()) as server:
        yield server


@contextmanager
def module(
    name: str, *flags: str, log: IO[bytes] | None = None, program: str = sys.executable
) -> Iterator[Server]:
    """Run `python -m NAME --port P FLAGS` and wait until it is ready, else raise SystemExit."""
    port = free_port()
    command = [program, "-m", name, "--port", str(port), *flags]
    process = subprocess.Popen(command, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield Server(url, process)
    finally:
        if process.poll() is None:
            try:
                stop(process)
            finally:
                process.kill()  # does nothing if it has ended


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Poll /readyz; raises SystemExit when the service ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise SystemExit(f"the service ended with code {server.returncode}, see above")
            try:
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_S)
    raise SystemExit(f"the service was not ready within {START_TIMEOUT_S} s")


def stop(server: subprocess.Popen[bytes]) -> int:
    """Ask the service to stop and return its exit code."""
    server.send_signal(signal.SIGTERM)
    return server.wait(timeout=60)
