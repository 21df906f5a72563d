"""Jobs over broken connections, and with servers that send wrong answers."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import BadAnswerError, Client, RetryPolicy, StatusError, UnreachableError
from service.client.cli import main
from service.client.jobs import download, requests
from service.client.jobs.job import Job
from tests.service.client.flaky_server import Answer, FlakyServer, Request, problem, running

NAME = "0123abcd"
EVENTS = f"/jobs/{NAME}/events"
STREAM = "text/event-stream"
QUICK = RetryPolicy(first_s=0.01, cap_s=0.01, give_up_after_s=5)


def state(state: str = "done", **changes: object) -> bytes:
    job = {"id": NAME, "state": state, "photos": 2, "done": 2, "failed": 0, "created": 1.0}
    return json.dumps({**job, "ended": None, "expires": None, "error": None, **changes}).encode()


def event(body: bytes) -> bytes:
    return b"event: progress\ndata: " + body + b"\n\n"


def result(size: int = 300_000, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("results.json", json.dumps({"results": []}))
        archive.writestr("a.mask.png", bytes(range(256)) * (size // 256))
    return buffer.getvalue()


def damaged(whole: bytes, at: int) -> bytes:
    """Change one byte, counted from the end if negative."""
    content = bytearray(whole)
    content[at] ^= 0xFF
    return bytes(content)


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "POLL_S", 0.01)


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with running() as server:
        yield server


def client_of(server: FlakyServer) -> Client:
    return Client(server.url, retry=QUICK)


def start_of(request: Request) -> int:
    return int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def rest_of(whole: bytes, start: int, *, is_cut: bool = False) -> Answer:
    """Answer a Range as RFC 9110 asks for."""
    headers = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"}
    return Answer(206 if start else 200, whole[start:], "application/zip", headers, is_cut=is_cut)


def test_a_download_that_is_cut_continues_where_it_stopped(
    server: FlakyServer, tmp_path: Path
) -> None:
    whole = result()
    server.misbehave = lambda request, nth: rest_of(
        whole, start_of(request), is_cut=len(server.requests) <= 2
    )
    with client_of(server) as client:
        assert client.fetch_job(NAME, tmp_path / "r.zip").read_bytes() == whole
    starts = [start_of(each) for each in server.requests]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] < starts[2] < len(whole)


def test_a_server_without_ranges_sends_it_all_again(server: FlakyServer, tmp_path: Path) -> None:
    whole = result()
    server.misbehave = lambda request, nth: Answer(
        200, whole, "application/zip", is_cut=len(server.requests) == 1
    )
    with client_of(server) as client:
        assert client.fetch_job(NAME, tmp_path / "r.zip").read_bytes() == whole


def test_a_part_of_something_else_is_thrown_away(server: FlakyServer, tmp_path: Path) -> None:
    """It is longer than the result, or its bytes do not belong to the same file as the rest."""
    whole = result()

    def serve(request: Request, _nth: int) -> Answer:
        if start_of(request) > len(whole):
            return Answer(416, b"", headers={"Content-Range": f"bytes */{len(whole)}"})
        return rest_of(whole, start_of(request))

    server.misbehave = serve
    part = tmp_path / f".r.zip.{NAME}.part"
    with client_of(server) as client:
        part.write_bytes(whole + b"more")
        assert client.fetch_job(NAME, tmp_path / "r.zip").read_bytes() == whole
        (tmp_path / "r.zip").unlink()
        part.write_bytes(b"x" * 1000)
        with pytest.raises(BadAnswerError, match="not a whole ZIP"):
            client.fetch_job(NAME, tmp_path / "r.zip")
        assert client.fetch_job(NAME, tmp_path / "r.zip").read_bytes() == whole


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>sign in</html>", "text/html"),
        Answer(200, result()[:-30], "application/zip"),
        Answer(200, result(), "application/zip", {"Content-Encoding": "gzip"}),
        Answer(200, damaged(result(), 1000), "application/zip"),
        Answer(200, damaged(result(2560, zipfile.ZIP_DEFLATED), 42), "application/zip"),
        Answer(200, damaged(result(), -6), "application/zip"),
        Answer(200, result(2560, zipfile.ZIP_LZMA), "application/zip"),
    ],
    ids=["page", "cut", "compressed", "checksum", "deflate", "directory", "lzma"],
)
def test_what_is_no_whole_zip_leaves_no_file(
    server: FlakyServer, tmp_path: Path, answer: Answer
) -> None:
    server.misbehave = lambda request, nth: answer
    with client_of(server) as client, pytest.raises(BadAnswerError):
        client.fetch_job(NAME, tmp_path / "r.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_the_disk_has_no_room_for_is_not_begun(
    server: FlakyServer, tmp_path: Path
) -> None:
    """A server that announces a petabyte does not fill the disk."""
    told = {"Content-Range": f"bytes 0-99/{10**15}"}
    server.misbehave = lambda request, nth: Answer(206, result()[:100], "application/zip", told)
    with client_of(server) as client, pytest.raises(BadAnswerError, match="the disk has"):
        client.fetch_job(NAME, tmp_path / "r.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_result_of_untold_length_is_bounded(
    server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endless answer is abandoned, and its part on the disk is removed."""
    monkeypatch.setattr(download, "MOST_UNTOLD", 10_000_000)
    endless = Answer(200, result(), "application/zip", is_endless=True)
    server.misbehave = lambda request, nth: endless
    with client_of(server) as client, pytest.raises(BadAnswerError, match="more bytes than"):
        client.fetch_job(NAME, tmp_path / "r.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_result_that_drips_is_given_up(server: FlakyServer, tmp_path: Path) -> None:
    """Two bytes every 20 ms are progress at each check, and would take hours."""
    server.misbehave = lambda request, nth: Answer(200, result(), "application/zip", drip_s=0.02)
    retry = RetryPolicy(first_s=0.01, cap_s=0.01, give_up_after_s=2)
    with (
        Client(server.url, retry=retry, timeout_s=0.5) as client,
        pytest.raises(UnreachableError, match="32768 bytes"),
    ):
        client.fetch_job(NAME, tmp_path / "r.zip")


def test_a_zip_that_unpacks_to_gigabytes_is_not_unpacked(
    server: FlakyServer, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mask.png", bytes(10_000_000))
    server.misbehave = lambda request, nth: Answer(200, buffer.getvalue(), "application/zip")
    with client_of(server) as client, pytest.raises(BadAnswerError, match="far more bytes"):
        client.fetch_job(NAME, tmp_path / "r.zip")


def test_a_refusal_is_not_retried_and_a_busy_service_is(
    server: FlakyServer, tmp_path: Path
) -> None:
    whole = result()
    answers = [problem(503, "overloaded"), Answer(200, whole, "application/zip")]
    server.misbehave = lambda request, nth: answers.pop(0)
    with client_of(server) as client:
        client.fetch_job(NAME, tmp_path / "r.zip")
        answers[:] = [problem(409, "job-not-done", "the job is running")]
        with pytest.raises(Exception, match="409 job-not-done: the job is running"):
            client.fetch_job(NAME, tmp_path / "again.zip")


@pytest.mark.parametrize(
    "events",
    [
        problem(404, "not-found"),
        Answer(200, b"<html>", "text/html"),
        Answer(200, event(b"[]"), STREAM),
        Answer(200, event(state("asleep")), STREAM),
        Answer(200, b"data: " + b"x" * 100_000, STREAM, is_endless=True),
        Answer(502, b"bad gateway", "text/plain"),
        Answer(200, event(state("running")), STREAM, is_cut=True),
    ],
    ids=["missing", "page", "list", "unknown", "endless", "gateway", "cut"],
)
def test_where_events_do_not_come_through_the_client_asks(
    server: FlakyServer, events: Answer
) -> None:
    states = [state("queued", done=0), state("running", done=1), state("done", ended=2.0)]

    def serve(request: Request, _nth: int) -> Answer:
        if request.path == EVENTS:
            return events
        return Answer(200, states.pop(0))

    server.misbehave = serve
    told: list[Job] = []
    with client_of(server) as client:
        assert client.watch_job(NAME, told.append).ended == 2.0
    assert [each.state for each in told] == ["queued", "running", "done"]


def test_events_that_come_through_need_no_question(server: FlakyServer) -> None:
    """Lines may end in CR LF, and comments are no events."""
    told = event(state("running", done=1)).replace(b"\n", b"\r\n")
    body = b": no change\n\n" + told + event(state("done"))
    server.misbehave = lambda request, nth: Answer(200, body, STREAM)
    with client_of(server) as client:
        heard: list[Job] = []
        client.watch_job(NAME, heard.append)
    assert [each.done for each in heard] == [1, 2]
    assert [each.path for each in server.requests] == [EVENTS]


def test_events_that_end_early_are_taken_up_again(server: FlakyServer) -> None:
    """As after a restart of the service."""
    streams = [event(state("running", done=1)), event(state("done"))]

    def serve(request: Request, _nth: int) -> Answer:
        if request.path == EVENTS:
            return Answer(200, streams.pop(0), STREAM)
        return Answer(200, state("running", done=1))

    server.misbehave = serve
    with client_of(server) as client:
        assert client.watch_job(NAME).state == "done"
    assert [each.path for each in server.requests] == [EVENTS, f"/jobs/{NAME}", EVENTS]


def test_a_job_is_not_queued_twice(server: FlakyServer, tmp_path: Path) -> None:
    """A connection that breaks later, or a proxy's error, is not retried; the service's 503 is."""
    (tmp_path / "photos.zip").write_bytes(result())
    server.misbehave = lambda request, nth: Answer(202, state(), is_cut=True)
    with client_of(server) as client:
        with pytest.raises(UnreachableError, match="the job may have been queued"):
            client.submit_job(tmp_path / "photos.zip")
        assert len(server.requests) == 1
        of_proxies = [problem(503, "unreachable"), Answer(504, b"late", "text/plain")]
        for number, answer in enumerate(of_proxies, 2):
            server.misbehave = lambda request, nth, answer=answer: answer  # type: ignore[misc]
            with pytest.raises(StatusError, match="the job may have been queued"):
                client.submit_job(tmp_path / "photos.zip")
            assert len(server.requests) == number
        answers = [problem(503, "jobs-full"), Answer(202, state("queued"))]
        server.misbehave = lambda request, nth: answers.pop(0)
        assert client.submit_job(tmp_path / "photos.zip").state == "queued"
    assert server.requests[-1].body == (tmp_path / "photos.zip").read_bytes()
    assert server.requests[-1].headers["content-type"] == "application/zip"


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", state("asleep"), state(done=-1), state(photos="many"), state(created=None)],
)
def test_an_answer_that_is_no_job_is_a_bad_answer(server: FlakyServer, body: bytes) -> None:
    server.misbehave = lambda request, nth: Answer(200, body)
    with client_of(server) as client, pytest.raises(BadAnswerError):
        client.job(NAME)


def test_control_characters_of_the_answer_never_reach_the_terminal(
    server: FlakyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = state("failed", id="a\x1b[2Jb", error="b\x1b]0;c\x07")
    listed = b'{"jobs": [' + hostile + b"]}"
    server.misbehave = lambda request, nth: Answer(
        200, listed if request.path == "/jobs" else hostile
    )
    assert main(["jobs", "list", server.url]) == 0
    assert main(["jobs", "watch", server.url, NAME]) == 1
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert r"b\x1b]0;c\x07" in told.err


@pytest.mark.slow
def test_the_reason_of_a_wait_is_told_once(
    server: FlakyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [problem(503, "overloaded", "come back later")] * 2 + [Answer(200, b'{"jobs": []}')]
    server.misbehave = lambda request, nth: answers.pop(0)
    assert main(["jobs", "list", server.url]) == 0
    assert capsys.readouterr().err == (
        "503 overloaded: come back later (trying for 120 s: --give-up-after)\n"
    )
