"""A decoder process: serves one request after another, within a limit of memory and time."""

from __future__ import annotations

import ctypes
import resource
import signal
import socket
import traceback
from contextlib import suppress

from service.decoders import tasks, wire

LARGE = 8_000_000  # pixels or bytes: after such a task freed memory goes back to the system


def serve(descriptor: int, max_bytes: int) -> None:
    """Answer requests until the service closes the connection. `max_bytes`: of address space."""
    connection = socket.socket(fileno=descriptor)
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    with connection, connection.makefile("rb") as requests, suppress(OSError):
        while message := wire.receive_bytes(requests):
            fields, data = message
            # The kernel ends the process when the time is over, even inside of a C library.
            signal.setitimer(signal.ITIMER_PROF, fields["cpu_s"])
            try:
                answer, arrays = tasks.run(fields, data)
            except Exception:
                answer, arrays = {"failed": traceback.format_exc()}, []
            signal.setitimer(signal.ITIMER_PROF, 0)
            del message, data
            wire.send_arrays(connection, answer, arrays)
            del arrays
            if fields["do"] != tasks.OPEN and fields["memory"] > LARGE:
                _trim_heap()


def _trim_heap() -> None:
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
