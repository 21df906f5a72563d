"""A decoder process: handle one request after another, within limits of memory and time."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import time
import traceback
from contextlib import suppress

from service.decoders import tasks, wire

LARGE = 25_000_000  # pixels or bytes: after such a task freed memory goes back to the system
IDLE_S = 0.5  # without a task: then too
# Small photos are decoded in the service itself, and go first: so do the engine and the event loop.
NICENESS = 10


def serve(descriptor: int, max_bytes: int) -> None:
    """Answer requests until the connection closes, within `max_bytes` of address space."""
    connection = socket.socket(fileno=descriptor)
    os.nice(NICENESS)
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    with connection, suppress(OSError, EOFError):
        trimmed = True
        while True:
            if not trimmed and not select.select([connection], [], [], IDLE_S)[0]:
                _trim_heap()
            # While ITIMER_PROF runs, the clock of the whole process advances in steps of a tick.
            began = time.thread_time()
            message = wire.receive(connection, max_data=2**62)
            # The kernel ends the process when the time is over, even inside of a C library.
            signal.setitimer(signal.ITIMER_PROF, message.fields["cpu_s"])
            try:
                answer, arrays = tasks.run(message)
            except Exception:
                answer, arrays = {"failed": traceback.format_exc()}, []
            signal.setitimer(signal.ITIMER_PROF, 0)
            answer[tasks.CPU_S] = time.thread_time() - began
            memory = message.fields["memory"]
            del message
            wire.send(connection, answer, arrays)
            del arrays
            trimmed = memory > LARGE
            if trimmed:
                _trim_heap()


def _trim_heap() -> None:
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
