"""Connections that take their time are closed; requests that are on their way are not."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import photo, png

ASK = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture(scope="module", params=["with httptools", "without"])
def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    """A service on either of uvicorn's protocols; the one it takes depends on what is there."""
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    flags = ["--header-timeout-s", "0.5", "--keep-alive-s", "1", "--max-body-bytes", "10000"]
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "without":
            (folder / "httptools.py").write_text("raise ImportError('hidden by a test')")
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        else:
            pytest.importorskip("httptools")
        with running(folder, *flags) as (url, _):
            host, port = url.removeprefix("http://").split(":")
            yield host, int(port)


def rest(connection: socket.socket, dripping: bytes = b"") -> bytes:
    """All that comes until the service closes, while a byte is sent now and then."""
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
    fields = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % fields["status"])
    return fields["status"], fields["code"]


@pytest.mark.parametrize("beginning", [b"", b"GET /livez HTT", ASK[:-2] + b"X-Slow: "])
@pytest.mark.parametrize("dripping", [b"", b"x"])
def test_headers_that_never_end_are_answered_with_408(
    address: tuple[str, int], beginning: bytes, dripping: bytes
) -> None:
    with closing(socket.create_connection(address)) as connection:
        connection.sendall(beginning)
        answer = rest(connection, dripping if beginning.endswith(b": ") else b"")
    assert problem(answer) == (408, "header-timeout")


def test_the_second_request_of_a_connection_is_timed_too(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address)) as connection:
        connection.sendall(ASK)
        received = b""
        while not received.endswith(b'{"status":"alive"}'):
            part = connection.recv(65536)
            assert part, received
            received += part
        connection.sendall(ASK[:-2] + b"X-Slow: ")
        assert problem(rest(connection, b"x")) == (408, "header-timeout")


def test_an_idle_connection_is_closed_without_a_word(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address)) as connection:
        connection.sendall(ASK)
        assert rest(connection).endswith(b'{"status":"alive"}')


def test_a_body_may_take_longer_than_headers(address: tuple[str, int]) -> None:
    body = png(photo())
    with closing(socket.create_connection(address)) as connection:
        connection.settimeout(60)
        connection.sendall(
            b"POST /segment HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        time.sleep(1)  # twice what headers may take
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_was_refused_cannot_drip_in_for_ever(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address)) as connection:
        connection.sendall(
            b"POST /segment HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
            b"Content-Length: 90000\r\n\r\nx"
        )
        assert rest(connection, b"x").startswith(b"HTTP/1.1 413 ")


def test_everybody_else_is_served_meanwhile(address: tuple[str, int]) -> None:
    slow = [socket.create_connection(address) for _ in range(50)]
    try:
        for each in slow:
            each.sendall(b"GET /")
        assert httpx.get(f"http://{address[0]}:{address[1]}/readyz").status_code == 200
    finally:
        for each in slow:
            each.close()
