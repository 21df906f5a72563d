"""Slow connections are closed; requests in progress are not."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

from service.http.middleware.limits import GRACE_S
from service.http.middleware.pace import MOST_S
from service.http.middleware.timeouts import protocol_with_timeouts
from tests.service import onnx_models
from tests.service.processes import LOG, running
from tests.service.web import photo, png

ASK = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"


@dataclass(frozen=True)
class Service:
    host: str
    port: int
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with short timeouts."""
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    flags = ["--header-timeout-s", "0.5", "--keep-alive-s", "1", "--max-body-bytes", "20000000"]
    flags += ["--send-timeout-s", "1"]
    with running(folder, *flags) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        yield Service(host, int(port), folder / LOG)


def rest(connection: socket.socket, dripping: bytes = b"") -> bytes:
    """Read until the service closes, while sending a byte now and then."""
    connection.settimeout(0.1)
    received = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = connection.recv(65536)
        except TimeoutError:
            if dripping:
                try:
                    connection.sendall(dripping[:1])
                except OSError:
                    return received
                dripping = dripping[1:] or dripping
            continue
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part
    raise AssertionError(f"the connection is still open; it said {received!r}")


def problem(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert b"application/problem+json" in head
    assert b"\r\ndate: " in head.lower()
    fields = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % fields["status"])
    return fields["status"], fields["code"]


@pytest.mark.slow
@pytest.mark.parametrize("beginning", [b"", b"GET /livez HTT", ASK[:-2] + b"X-Slow: "])
@pytest.mark.parametrize("dripping", [b"", b"x"])
def test_headers_that_never_end_are_answered_with_408(
    service: Service, beginning: bytes, dripping: bytes
) -> None:
    with closing(socket.create_connection(service.address)) as connection:
        connection.sendall(beginning)
        answer = rest(connection, dripping if beginning.endswith(b": ") else b"")
    assert problem(answer) == (408, "header-timeout")


@pytest.mark.slow
def test_the_second_request_of_a_connection_is_timed_too(service: Service) -> None:
    with closing(socket.create_connection(service.address)) as connection:
        connection.sendall(ASK)
        received = b""
        while not received.endswith(b'{"status":"alive"}'):
            part = connection.recv(65536)
            assert part, received
            received += part
        connection.sendall(ASK[:-2] + b"X-Slow: ")
        assert problem(rest(connection, b"x")) == (408, "header-timeout")


def garbage(service: Service) -> float:
    """Send what is not HTTP; returns the seconds until the answer."""
    began = time.monotonic()
    with closing(socket.create_connection(service.address)) as connection:
        connection.sendall(b"garbage\r\n\r\n")
        with suppress(OSError):
            connection.sendall(b"more garbage\r\n\r\n")
        assert problem(rest(connection)) == (400, "invalid-request")
    return time.monotonic() - began


@pytest.mark.slow
def test_a_flood_of_what_is_not_http_is_answered_slowly(service: Service) -> None:
    """Each gets one answer, however much of it there is, and others are served meanwhile."""

    at_once = [garbage(service) for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        flood = [pool.submit(garbage, service) for _ in range(80)]
        response = httpx.get(f"http://{service.host}:{service.port}/livez", timeout=60)
        assert response.status_code == 200
        slow = [each.result() for each in flood]
    assert max(slow) > 0.2 > min(at_once)  # 20 at a time, 50 in a second


@pytest.mark.slow
def test_what_is_not_http_is_answered_too_when_the_service_stops(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path, "--refusals-per-s", "2") as (url, process):
        host, port = url.removeprefix("http://").split(":")
        service = Service(host, int(port), tmp_path / LOG)
        with ThreadPoolExecutor(12) as pool:
            flood = [pool.submit(garbage, service) for _ in range(12)]
            while sum(each.done() for each in flood) < 2:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert all(each.result() < MOST_S for each in flood)
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("framing", "rest_of_body"),
    [
        (b"Transfer-Encoding: chunked", b"ZZZ garbage\r\n"),
        (b"Content-Length: 300", b"slow"),
    ],
    ids=["garbage", "slow"],
)
def test_a_request_that_is_refused_early_gets_one_answer(
    service: Service, framing: bytes, rest_of_body: bytes
) -> None:
    """Whatever becomes of the rest of its body, which nobody waits for."""
    with closing(socket.create_connection(service.address)) as connection:
        connection.sendall(b"POST /unknown HTTP/1.1\r\nHost: test\r\n" + framing + b"\r\n\r\n")
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 404 ")
        connection.sendall(rest_of_body)
        assert (answer + rest(connection)).count(b"HTTP/1.1") == 1


@pytest.mark.slow
def test_a_connection_is_idle_when_the_rest_of_a_refused_body_has_come(service: Service) -> None:
    """It is kept for the next request, and none would expect a 408."""
    with closing(socket.create_connection(service.address)) as connection:
        connection.sendall(b"POST /unknown HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"rest")
        came = time.monotonic()
        assert b"HTTP/1.1" not in rest(connection)
        assert time.monotonic() - came > 0.8  # --keep-alive-s, not --header-timeout-s


@pytest.mark.slow
def test_an_idle_connection_is_closed_without_an_answer(service: Service) -> None:
    with closing(socket.create_connection(service.address)) as connection:
        connection.sendall(ASK)
        assert rest(connection).endswith(b'{"status":"alive"}')


@pytest.mark.slow
def test_a_body_may_take_longer_than_headers(service: Service) -> None:
    body = png(photo())
    with closing(socket.create_connection(service.address)) as connection:
        connection.settimeout(60)
        connection.sendall(
            b"POST /segment HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        time.sleep(1)  # twice what headers may take
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
def test_a_refused_body_cannot_keep_arriving_for_ever(service: Service) -> None:
    with closing(socket.create_connection(service.address)) as connection:
        connection.sendall(
            b"POST /segment HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
            b"Content-Length: 90000000\r\n\r\nx"
        )
        assert rest(connection, b"x").startswith(b"HTTP/1.1 413 ")


@pytest.mark.slow
def test_other_clients_are_served_meanwhile(service: Service) -> None:
    slow = [socket.create_connection(service.address) for _ in range(50)]
    try:
        for each in slow:
            each.sendall(b"GET /")
        assert httpx.get(f"http://{service.host}:{service.port}/readyz").status_code == 200
    finally:
        for each in slow:
            each.close()


@contextmanager
def owed(service: Service, window: int | None = 65536) -> Iterator[tuple[socket.socket, int]]:
    """Request an answer of several megabytes without reading it; return connection and length."""
    # Encoded before connecting, because the time for headers is short.
    noise = png(np.random.default_rng(0).integers(0, 256, (1800, 1800, 3), np.uint8))
    with closing(socket.socket()) as connection:
        if window is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        connection.connect(service.address)
        connection.settimeout(60)
        connection.sendall(
            b"POST /segment?output=overlay&overlay_format=png HTTP/1.1\r\nHost: test\r\n"
            b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(noise) + noise
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = connection.recv(1)
            assert part, head
            head += part
        (length,) = re.findall(rb"content-length: (\d+)", head)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert int(length) > 8_000_000  # the kernel itself buffers four
        yield connection, int(length)


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_cut_off(service: Service) -> None:
    with owed(service) as (connection, length):
        deadline = time.monotonic() + 60
        while "client read 0 bytes" not in service.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(rest(connection)) < length


@pytest.mark.slow
@pytest.mark.parametrize(("bytes_per_s", "whole"), [(200_000, False), (20_000_000, True)])
def test_an_answer_must_be_read_with_the_least_rate(
    tmp_path: Path, bytes_per_s: int, whole: bool
) -> None:
    """--min-bytes-per-s 500000: a client that reads 200 KB/s is cut off, one that reads 20 MB/s
    gets all. The kernel's own buffers, some megabytes, are read by both."""
    onnx_models.save(tmp_path / "tiny.onnx")
    flags = ["--send-timeout-s", "1", "--min-bytes-per-s", "500000"]
    with running(tmp_path, *flags) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with owed(Service(host, int(port), tmp_path / LOG)) as (connection, length):
            assert (_read(connection, length, bytes_per_s) == length) == whole


def _read(connection: socket.socket, length: int, bytes_per_s: float = 1e9) -> int:
    """Read an answer at a rate; return its bytes, which may be fewer than promised."""
    began, received = time.monotonic(), 0
    connection.settimeout(20)
    while received < length:
        time.sleep(max(0.0, received / bytes_per_s - (time.monotonic() - began)))
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += len(part)
    return received


@pytest.mark.slow
def test_a_slow_reader_makes_room_for_others(tmp_path: Path) -> None:
    """Two answers of 9 MB exceed the 15 MB for large ones: the one that is not read is dropped."""
    onnx_models.save(tmp_path / "tiny.onnx")
    flags = ["--max-pending-bytes", "20000000", "--min-bytes-per-s", "0"]
    with running(tmp_path, *flags) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        service = Service(host, int(port), tmp_path / LOG)
        with owed(service) as (slow, length):
            time.sleep(GRACE_S + 1)
            with owed(service, window=None) as (fast, _):
                assert _read(fast, length) == length
            assert _read(slow, length) < length
        assert "the client read too slowly" in service.log.read_text()


class Transport(asyncio.Transport):
    """The client reads slowly for a while and then stops."""

    def __init__(self, unsent: list[int]) -> None:
        super().__init__()
        self.unsent = unsent
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.unsent.pop(0) if len(self.unsent) > 1 else self.unsent[0]

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        """Nothing is open."""


async def nothing(scope: object, receive: object, send: object) -> None:
    """An application that is never called."""


@pytest.mark.slow
def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    async def scenario() -> None:
        made = protocol_with_timeouts(header_timeout_s=60, send_timeout_s=0.01)
        config = uvicorn.Config(nothing, log_config=None)
        protocol = made(config=config, server_state=ServerState(), app_state={})  # type: ignore[call-arg]
        transport = Transport([900, 800, 800, 1])
        protocol.connection_made(transport)
        protocol.pause_writing()
        await asyncio.wait_for(transport.aborted.wait(), 20)
        assert transport.unsent == [1]  # 800 < 900: it had more time; then 800 again
        transport = Transport([5, 4, 3, 2, 1])
        protocol = made(config=config, server_state=ServerState(), app_state={})  # type: ignore[call-arg]
        protocol.connection_made(transport)
        protocol.pause_writing()
        while len(transport.unsent) > 1:
            assert not transport.aborted.is_set()
            await asyncio.sleep(0)
        protocol.resume_writing()  # all but a little has gone
        await asyncio.sleep(0.1)
        assert not transport.aborted.is_set()
        protocol.connection_lost(None)

    asyncio.run(scenario())
