"""A small process that has loaded the decoders' libraries and forks decoder processes.

The service itself cannot fork: it has threads. Starting an interpreter for each new decoder
would take 0.3 s, and hostile photos can end many. Run as
`python -m service.decoders.nursery DESCRIPTOR MAX_BYTES`; it ends with the service.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

FORK, REAP = b"F", b"R"
REQUEST = struct.Struct("<ci")  # what to do, and the process to reap
ANSWER = struct.Struct("<i")  # a process id, a wait status, or a negative error number


ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc would return the megabytes of each photo to the system and fetch them again, with a
    # page fault for every 4 KB: that takes as long as decoding. The worker trims when it is idle.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}


class Nursery:
    """The service's side: starts and ends decoder processes."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: limit of address space for each decoder; 0: no limit."""
        self._max_bytes = max_bytes
        self._closed = False
        self._lock = threading.Lock()
        self._process, self._control = _start(max_bytes)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fork(self) -> tuple[int, socket.socket]:
        """Start a decoder; return its process id and connection. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                pid = self._call(FORK, 0, [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        return pid, ours

    def reap(self, pid: int) -> int:
        """End a decoder, if it runs, and return its wait status. Raises OSError."""
        with self._lock:
            return self._call(REAP, pid, [])

    def _call(self, what: bytes, pid: int, descriptors: list[int]) -> int:
        try:
            socket.send_fds(self._control, [REQUEST.pack(what, pid)], descriptors)
            answer = self._control.recv(ANSWER.size, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < ANSWER.size:  # it was ended from outside
            if not self._closed:
                self._end()
                self._process, self._control = _start(self._max_bytes)
            raise ConnectionError("the process that starts decoders had ended")
        (number,) = ANSWER.unpack(answer)
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return int(number)

    def close(self) -> None:
        """End the process; decoders end when their connections are closed."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


def _start(max_bytes: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        descriptor = theirs.fileno()
        command = [sys.executable, "-m", __spec__.name, str(descriptor), str(max_bytes)]
        # One thread each: a fork has no other threads, and there is a process for each core.
        environment = os.environ | ENVIRONMENT
        process = subprocess.Popen(
            command, pass_fds=[descriptor], env=environment, stdin=subprocess.DEVNULL
        )
    return process, ours


def main(argv: list[str]) -> int:
    """Fork and reap decoders until the service closes the connection."""
    # Imported here because the service also imports this module on systems without `resource`.
    from service.decoders import worker  # noqa: PLC0415

    # Ctrl-C and service managers signal every process of the group, but photos must be finished.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    gc.freeze()  # the decoders share this memory until it is written to
    with socket.socket(fileno=int(argv[0])) as control:
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
            except ConnectionError:  # the service ended and had not read the last answer
                return 0
            if len(message) < REQUEST.size:
                return 0
            what, pid = REQUEST.unpack(message)
            if what == FORK:
                answer = _fork(control, partial(worker.serve, descriptors[0], int(argv[1])))
            else:
                answer = _reap(pid)
            for descriptor in descriptors:
                os.close(descriptor)
            try:
                control.sendall(ANSWER.pack(answer))
            except OSError:  # the service ended meanwhile
                return 0


def _fork(control: socket.socket, serve: Callable[[], None]) -> int:
    """Return the process id of a new decoder, or a negative error number."""
    try:
        pid = os.fork()
    except OSError as error:
        return -(error.errno or 1)
    if pid:
        return pid
    code = 1
    try:
        control.close()
        serve()
        code = 0
    finally:
        os._exit(code)  # exit here, without returning to the caller's loop


def _reap(pid: int) -> int:
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)  # fails if it is the child of another process
        if not ended:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
    except OSError as error:
        return -(error.errno or 1)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
