"""Valid HTTP/1.1 requests that many servers mishandle, on real connections."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service import onnx_models
from tests.service.processes import LOG, running
from tests.service.web import opened, photo, png

pytestmark = pytest.mark.slow

BODY = png(photo())
ASK = Path(__file__).with_name("Ask.java")
UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)


@dataclass(frozen=True)
class Service:
    host: str
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    with running(folder) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        yield Service(host, int(port), folder / LOG)


def connected(service: Service) -> socket.socket:
    connection = socket.create_connection((service.host, service.port))
    connection.settimeout(20)
    return connection


def request(target: str = "/segment", more: bytes = b"", body: bytes = BODY) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
    return head.encode() + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next final answer; interim answers are skipped."""
    received = b""
    while True:
        head, found, rest = received.partition(b"\r\n\r\n")
        if found and head.startswith(b"HTTP/1.1 1"):
            received = rest
            continue
        length = [
            int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")
        ]
        if found and length and len(rest) >= length[0]:
            return int(head.split()[1]), rest[: length[0]]
        part = connection.recv(65536)
        assert part, received
        received += part


def output_of(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def is_mask(body: bytes) -> bool:
    return bool((opened(body) == onnx_models.expected(photo())).all())


def test_an_offer_to_upgrade_to_http2_is_answered_over_http1(service: Service) -> None:
    """httptools stops reading at the offer, and then the body is empty."""
    with closing(connected(service)) as connection:
        for more in (UPGRADE, b"", UPGRADE):  # and the connection can be used again
            connection.sendall(request(more=more))
            status, body = answer(connection)
            assert status == 200
            assert is_mask(body)
    assert "upgrade" not in service.log.read_text().lower()


def test_javas_client_is_answered(service: Service, tmp_path: Path) -> None:
    java = shutil.which("java")
    if java is None or "jdk.compiler" not in output_of(java, "--list-modules"):
        pytest.skip("needs Java 11 or newer with its compiler (Debian: openjdk-17-jdk-headless)")
    (tmp_path / "photo.png").write_bytes(BODY)
    printed = output_of(java, str(ASK), f"{service.url}/segment", str(tmp_path / "photo.png"))
    size = len(httpx.post(f"{service.url}/segment", files={"file": BODY}).content)
    assert printed.split() == ["200", str(size)] * 2


def test_an_offer_of_a_websocket_is_answered_over_http1(service: Service) -> None:
    more = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with closing(connected(service)) as connection:
        connection.sendall(request(more=more + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"))
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("origin", ["http://test", "http://other:99", "HTTPS://test"])
def test_a_target_in_absolute_form_is_the_same_path(service: Service, origin: str) -> None:
    with closing(connected(service)) as connection:
        connection.sendall(request(f"{origin}/segment?output=json"))
        status, body = answer(connection)
        assert (status, json.loads(body)["width"]) == (200, 50)
        connection.sendall(f"GET {origin}/models/ti%6Ey HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert answer(connection)[0] == 200
        connection.sendall(f"GET {origin} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert answer(connection)[0] == 200
        connection.sendall(f"GET {origin}/nothing HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        status, body = answer(connection)
        assert (status, json.loads(body)["code"]) == (404, "not-found")


def test_a_sender_that_closes_its_own_direction_is_answered(service: Service) -> None:
    """`nc -N` does this. uvicorn alone mistakes it for a disconnect."""
    for _ in range(5):
        with closing(connected(service)) as connection:
            connection.sendall(request())
            connection.shutdown(socket.SHUT_WR)
            status, body = answer(connection)
            assert status == 200
            assert is_mask(body)
            assert connection.recv(1) == b""  # and the connection closes after the answer


def test_a_half_closed_sender_is_answered_after_a_long_wait(service: Service) -> None:
    """Interim answers arrive first, then the final one."""
    large = png(np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8))
    with closing(connected(service)) as connection:
        connection.sendall(request("/segment?output=json,color,npz,overlay", body=large))
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection)[0] == 200


def test_half_a_request_before_a_half_close_ends_the_connection(service: Service) -> None:
    with closing(connected(service)) as connection:
        connection.sendall(request()[:-10])
        connection.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        assert connection.recv(65536) == b""
        assert time.monotonic() - began < 10


def test_a_client_that_disconnects_completely_is_noticed(service: Service) -> None:
    """Its request is dropped and counted as 499."""
    large = png(np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8))
    with closing(connected(service)) as connection:
        connection.sendall(request("/segment?output=overlay,npz,polygons", body=large))
    end = time.monotonic() + 20
    line = "deeplab_cancelled_total 1.0"
    while line not in httpx.get(f"{service.url}/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.1)
