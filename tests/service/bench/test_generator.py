"""The load generator counts exactly the answers that it got."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.bench.generator import Load, drive, measured
from tests.service.client.flaky_server import FlakyServer, problem
from tests.service.client.flaky_server import running as flaky

pytestmark = pytest.mark.slow  # waits for slow servers


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with flaky() as server:
        yield server


@pytest.fixture
def photo(tmp_path: Path) -> str:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff and so on")
    return str(tmp_path / "photo.jpg")


def load(server: FlakyServer, photo: str, n: int = 3) -> Load:
    url = f"{server.url}/segment?output=mask"
    return Load(url, (photo,), n, seconds=0.5, warm_up_s=0.2, watch=os.getpid())


def test_as_many_requests_as_asked_are_in_flight(server: FlakyServer, photo: str) -> None:
    server.delay_s = 0.05
    report = asyncio.run(drive(load(server, photo)))
    assert server.most_in_flight == 3
    assert 50 <= report.latency_ms < 500
    assert 0 < report.answers <= 3 * 0.5 / 0.05 + 3
    assert len(server.segmented()) > report.answers  # the warm-up is not counted
    assert report.failures == 0
    assert report.stages_ms == {"decode": 1.5, "infer": 20.0}


@pytest.mark.slow
def test_the_photo_arrives_as_a_form(server: FlakyServer, photo: str) -> None:
    asyncio.run(drive(load(server, photo, n=1)))
    first = server.requests[0]
    assert first.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="file"' in first.body
    assert b"image/jpeg" in first.body
    assert Path(photo).read_bytes() in first.body


def test_a_slow_server_is_waited_for(server: FlakyServer, photo: str) -> None:
    server.delay_s = 1.0
    report = asyncio.run(drive(load(server, photo)))
    assert report.answers >= 3
    assert report.seconds > 0.6


def test_the_window_holds_whole_requests(server: FlakyServer, photo: str) -> None:
    """A window of 0.5 s held one or two answers of 0.3 s, a rate of 2 or 4 instead of 3.3."""
    server.delay_s = 0.3
    report = asyncio.run(drive(load(server, photo, n=1)))
    assert report.rate == pytest.approx(1000 / report.latency_ms, rel=0.15)


def test_failures_are_counted_separately(server: FlakyServer, photo: str) -> None:
    server.delay_s = 0.01
    server.misbehave = lambda request, nth: problem(503, "overloaded") if nth % 2 else None
    report = asyncio.run(drive(load(server, photo)))
    assert report.answers > 0
    assert report.failures == pytest.approx(report.answers, abs=3)


def test_a_separate_process_counts_the_same(server: FlakyServer, photo: str) -> None:
    server.delay_s = 0.05
    report = measured(load(server, photo))
    assert report.answers > 0
    assert report.client_cpu_s > 0
    assert report.server_cpu_s is not None


@pytest.mark.slow
def test_a_server_that_only_fails_is_an_error(server: FlakyServer, photo: str) -> None:
    server.misbehave = lambda request, nth: problem(500, "internal-error")
    with pytest.raises(RuntimeError, match="failures and no answer"):
        measured(load(server, photo))
