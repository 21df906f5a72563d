"""Client libraries: the part of a single request's latency that the server does not explain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.bench import libraries
from service.bench.generator import LoadReport
from tests.service.client.flaky_server import FlakyServer, problem
from tests.service.client.flaky_server import running as flaky

pytestmark = pytest.mark.slow  # starts processes


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with flaky() as server:
        yield server


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff and so on")
    return tmp_path / "photo.jpg"


def send(name: str, server: FlakyServer, photo: Path) -> LoadReport:
    return libraries.measured(name, f"{server.url}/segment?output=mask", [photo], seconds=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("name", libraries.available())
def test_latency_is_split_into_what_the_server_says_and_the_rest(
    server: FlakyServer, photo: Path, name: str
) -> None:
    """The server takes 50 ms and explains 21.5 of them."""
    server.delay_s = 0.05
    report = send(name, server, photo)
    assert report.stages_ms == {"decode": 1.5, "infer": 20.0}
    assert 50 <= report.latency_ms < 500
    assert report.rest_ms == pytest.approx(report.latency_ms - 21.5)
    assert report.answers == len(server.segmented()) - 1  # one was the warm-up
    assert report.failures == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", libraries.available())
def test_the_photo_arrives_as_a_form(server: FlakyServer, photo: Path, name: str) -> None:
    """Every library sends the field `file`, as the documentation shows it."""
    send(name, server, photo)
    first = server.requests[0]
    assert b'name="file"' in first.body
    assert photo.read_bytes() in first.body


@pytest.mark.parametrize(
    "name",
    [
        name if name == "httpx" else pytest.param(name, marks=pytest.mark.slow)
        for name in libraries.available()
    ],
)
def test_answers_other_than_200_are_failures(server: FlakyServer, photo: Path, name: str) -> None:
    """A server that refuses everything has no latency."""
    server.misbehave = lambda request, nth: problem(503, "overloaded")
    with pytest.raises(RuntimeError, match=rf"from {name}: \d+ failures and no answer"):
        send(name, server, photo)
