"""A client that still sends gets the answer of a connection that closes."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from service.http.middleware import pace
from service.http.middleware.linger import discard
from service.http.middleware.pace import Pace
from tests.service import onnx_models
from tests.service.processes import LOG, running


@pytest.mark.slow
def test_a_client_that_sends_all_before_it_reads_gets_its_refusal(tmp_path: Path) -> None:
    """Python's urllib does that, and asks for the connection to be closed."""
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path, "--max-body-bytes", "20000000") as (url, _):
        assert _refusal(f"{url}/unknown", 8_000_000) == 404
        assert _refusal(f"{url}/segment", 40_000_000) == 413
    assert "Traceback" not in (tmp_path / LOG).read_text()


def _refusal(url: str, size: int) -> int:
    request = urllib.request.Request(url, bytes(size), {"Content-Type": "image/jpeg"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    error.value.close()
    return error.value.code


class Reading:
    """Notes when it is paused."""

    def __init__(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def test_what_nobody_needs_is_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """At as many megabytes a second as refusals are answered."""
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)

    async def main() -> None:
        reading, clock = Reading(), asyncio.get_running_loop().time
        began = clock()
        discard(reading, 2**20, Pace(10))
        assert reading.paused
        while reading.paused:
            await asyncio.sleep(0.005)
        assert clock() - began > 0.09

    asyncio.run(main())


def test_without_a_rate_it_is_read_at_once() -> None:
    reading = Reading()
    discard(reading, 2**40, Pace(0))
    assert not reading.paused
