from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.client import (
    AsyncClient,
    BadAnswerError,
    Client,
    RetryPolicy,
    StatusError,
    UnreachableError,
    UsageError,
)

from .flaky_server import Answer, FlakyServer, problem, result


class Searches:
    """Record which modules are looked for, and find none of them."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, *_: object) -> None:
        self.names.append(name)


HASTE = RetryPolicy(first_s=0.01, give_up_after_s=0.1)


def test_answer_carries_all_that_the_service_says(server: FlakyServer) -> None:
    with Client(server.url) as client:
        answer = client.segment(b"photo")
    assert answer.content == result("mask", b"photo")
    assert answer.files() == {"mask.png": answer.content}
    assert (answer.content_type, answer.outputs) == ("image/png", ("mask",))
    assert (answer.model, answer.digest, answer.provider) == ("light", "d1", "CPU")
    assert answer.request_id == "r-1"
    assert answer.timing == {"decode": 1.5, "infer": 20.0}


def test_path_text_and_bytes_are_the_same_photo(server: FlakyServer, photos: Path) -> None:
    path = photos / "cat.jpg"
    with Client(server.url) as client:
        answers = {client.segment(image).content for image in (path, str(path), b"cat.jpg")}
    assert len(answers) == 1


def test_several_outputs_come_from_one_request(server: FlakyServer) -> None:
    with Client(server.url) as client:
        files = client.segment(b"photo", output="mask,overlay").files()
    assert set(files) == {"mask.png", "overlay.png"}
    assert len(server.segmented()) == 1


def test_other_options_of_the_service_are_passed_on(server: FlakyServer) -> None:
    with Client(server.url) as client:
        client.segment(b"photo", options={"fit": "sliding", "alpha": 0.7})
    (request,) = server.requests
    assert request.query == {"output": "mask", "fit": "sliding", "alpha": "0.7"}


def test_key_model_and_media_type_are_sent(server: FlakyServer) -> None:
    with Client(server.url, api_key="secret") as client:
        client.segment(b"\x89PNG\r\n\x1a\n", model="light")
    (request,) = server.requests
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-type"] == "image/png"
    assert request.query == {"output": "mask", "model": "light"}


def test_models_are_typed(server: FlakyServer) -> None:
    with Client(server.url) as client:
        (model,) = client.models()
    assert (model.name, model.digest, model.default) == ("light", "d1", True)
    assert model.classes == ("background", "cat")
    assert model.palette == ((0, 0, 0), (64, 0, 0))


def test_refusal_is_a_typed_error(server: FlakyServer) -> None:
    server.misbehave = lambda request, nth: problem(413, "image-too-large", "at most 50 MP")
    with Client(server.url) as client, pytest.raises(StatusError) as caught:
        client.segment(b"photo")
    error = caught.value
    assert (error.status, error.code, error.detail) == (413, "image-too-large", "at most 50 MP")
    assert error.request_id == "r-1"


def test_refusal_by_a_proxy_is_an_error_too(server: FlakyServer) -> None:
    server.misbehave = lambda request, nth: Answer(403, b"<html>Forbidden</html>", "text/html")
    with (
        Client(server.url) as client,
        pytest.raises(StatusError, match=r"403 http-403: Forbidden \(a"),
    ):
        client.segment(b"photo")


def test_login_page_is_not_taken_for_a_mask(server: FlakyServer) -> None:
    server.misbehave = lambda request, nth: Answer(200, b"<html>Log in</html>", "text/html")
    with Client(server.url) as client, pytest.raises(BadAnswerError, match="text/html"):
        client.segment(b"photo")


def test_models_that_are_not_a_list_are_a_bad_answer(server: FlakyServer) -> None:
    server.misbehave = lambda request, nth: Answer(200, b'{"models": 5}')
    with Client(server.url) as client, pytest.raises(BadAnswerError):
        client.models()


def test_blocking_client_retries_too(server: FlakyServer) -> None:
    server.misbehave = lambda request, nth: problem(503, "overloaded") if nth <= 2 else None
    with Client(server.url, retry=RetryPolicy(first_s=0.01)) as client:
        assert client.segment(b"photo").content == result("mask", b"photo")
    assert len(server.segmented()) == 3


def test_blocking_client_works_in_threads_and_inside_of_a_running_loop(server: FlakyServer) -> None:
    """Notebooks run their cells inside an event loop."""
    server.delay_s = 0.05
    with Client(server.url) as client, ThreadPoolExecutor(4) as threads:
        images = [str(number).encode() for number in range(8)]
        answers = threads.map(lambda image: client.segment(image).content, images)
        assert list(answers) == [result("mask", image) for image in images]

        async def cell() -> bool:
            return client.ready()

        assert asyncio.run(cell())
    assert server.most_in_flight >= 2


FORK = """
import os, sys
from service.client import Client
client = Client(sys.argv[1])
assert client.ready()
child = os.fork()
if child == 0:
    os._exit(0 if client.ready() else 1)
_, status = os.waitpid(child, 0)
assert client.ready()
client.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
def test_blocking_client_works_in_a_forked_process(server: FlakyServer) -> None:
    """A forked process, such as a loader's worker, has the client's memory but not its thread."""
    command = [sys.executable, "-c", FORK, server.url]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0


def test_a_missing_server_is_unreachable_and_not_ready() -> None:
    with Client("http://127.0.0.1:9", retry=HASTE) as client:
        assert not client.ready()
        with pytest.raises(UnreachableError):
            client.segment(b"photo")


def test_async_client_answers_many_at_once(server: FlakyServer, photos: Path) -> None:
    server.delay_s = 0.05

    async def both() -> list[bytes]:
        async with AsyncClient(server.url) as client:
            assert await client.ready()
            images: list[bytes | Path] = [b"one", photos / "cat.jpg"]
            answers = await asyncio.gather(*(client.segment(image) for image in images))
            return [answer.content for answer in answers]

    assert asyncio.run(both()) == [result("mask", b"one"), result("mask", b"cat.jpg")]
    assert server.most_in_flight == 2


def test_requests_search_no_modules(server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """httpcore tries to import sniffio for every request, even where it is not installed."""
    searches = Searches()

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            await client.segment(b"first")  # imports everything that is imported once
            monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
            await client.segment(b"second")

    asyncio.run(run())
    assert searches.names == []


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://host:port", "photos/"]
)
def test_invalid_url_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        Client(url)


def test_unknown_output_is_refused_before_anything_is_sent(server: FlakyServer) -> None:
    with Client(server.url) as client, pytest.raises(UsageError, match="choose from mask"):
        client.segment(b"photo", output="masks")
    assert not server.requests
