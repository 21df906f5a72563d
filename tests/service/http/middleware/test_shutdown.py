"""Requests cut off by shutdown get a 503, which tells clients to retry."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware.shutdown import ShutdownAnswer
from tests.service import onnx_models
from tests.service.processes import LOG, running


@pytest.mark.slow
def test_a_request_beyond_the_shutdown_timeout_is_answered_with_503(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path, "--shutdown-timeout-s", "1") as (url, process):
        address = url.removeprefix("http://")
        with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            connection.putrequest("POST", "/segment")
            connection.putheader("Content-Type", "image/png")
            connection.putheader("Content-Length", "1000")
            connection.endheaders(b"the rest never comes")
            while "requests_in_flight 1.0" not in httpx.get(f"{url}/metrics").text:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            with connection.getresponse() as answer:
                problem = json.loads(answer.read())
                assert (answer.status, problem["code"]) == (503, "shutting-down")
                assert answer.headers["Retry-After"] == "5"
                assert answer.headers["X-Request-ID"] == problem["request_id"]
        assert process.wait(20) == 0
    assert "Traceback" not in (tmp_path / LOG).read_text()


@pytest.mark.parametrize(("began", "draining"), [(True, True), (False, False)])
def test_other_requests_are_cancelled_as_usual(began: bool, draining: bool) -> None:
    """An answer that has started stays as it is, and a disconnected client gets none."""
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if began:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: Scope = {"type": "http", "path": "/segment"}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(ShutdownAnswer(app, lambda: draining)(scope, receive, send))
    assert len(sent) == began
