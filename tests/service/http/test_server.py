"""The listening socket, and how fast small answers leave a kept-alive connection."""

from __future__ import annotations

import socket
import statistics
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from service.http.server import listen
from tests.service import onnx_models
from tests.service.processes import running

DELAYED_ACK_MS = 40  # Linux's least delay of an ACK, for which Nagle's algorithm waits


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_connections_send_without_delay(host: str) -> None:
    """The option is set on the connection itself, for any event loop."""
    try:
        listener = listen(host, 0)
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")
    with (
        listener,
        socket.create_connection(listener.getsockname()[:2]),
        closing(listener.accept()[0]) as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.slow
def test_an_answer_on_a_kept_alive_connection_waits_for_no_ack(tmp_path: Path) -> None:
    """Headers and body are written one after the other: the body must not wait for an ACK."""
    onnx_models.save(tmp_path / "tiny.onnx")
    took_ms = []
    with running(tmp_path) as (url, _), httpx.Client(base_url=url) as client:
        for _ in range(60):
            began = time.perf_counter()
            assert client.get("/livez").status_code == 200
            took_ms.append(1000 * (time.perf_counter() - began))
    # A connection's first ACKs are not delayed.
    assert statistics.median(took_ms[20:]) < DELAYED_ACK_MS / 2
