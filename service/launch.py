"""Servers as processes of their own, for as long as a measurement takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from service.demo import free_port, stop, wait_until_ready


@dataclass(frozen=True)
class Server:
    """A server that answers `/readyz` with 200."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


@contextmanager
def service(models: Path, *flags: str, log: IO[bytes] | None = None) -> Iterator[Server]:
    """`python -m service` on a folder of models, at a free port; stopped with SIGTERM."""
    with module("service", "--models", str(models), *flags, log=log) as server:
        yield server


@contextmanager
def module(name: str, *flags: str, log: IO[bytes] | None = None) -> Iterator[Server]:
    """`python -m NAME --port P FLAGS`, once it is ready; SystemExit if it does not get there."""
    port = free_port()
    command = [sys.executable, "-m", name, "--port", str(port), *flags]
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
                process.kill()  # nothing, if it has ended
