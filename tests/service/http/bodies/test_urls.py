"""Photos behind URLs, fetched from a server of this machine that the allow-list names."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.allow_list import AllowList
from service.errors import StartupError
from service.http.bodies import urls
from tests.service import onnx_models
from tests.service.web import opened, photo, png, serving

pytestmark = pytest.mark.slow

LIMIT = 100_000
SEEN: list[tuple[str, dict[str, str]]] = []  # path and headers of each request
STOP = threading.Event()


class Pictures(BaseHTTPRequestHandler):
    """Serves a photo, redirects and trouble."""

    def do_GET(self) -> None:
        SEEN.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        port = self.headers["Host"].rpartition(":")[2]
        away = {
            "/once": "/photo.png",
            "/loop": "/loop",
            "/private": f"http://127.0.0.2:{port}/photo.png",
            "/decimal": f"http://2130706433:{port}/photo.png",
            "/file": "file:///etc/passwd",
            "/user": f"http://a:b@127.0.0.1:{port}/photo.png",
        }
        if self.path in away:
            self.send_response(302)
            self.send_header("Location", away[self.path])
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            self._without_end()
        elif self.path == "/slow":
            STOP.wait(20)
        else:
            self._answer()

    def _answer(self) -> None:
        body = png(photo())
        self.send_response(404 if self.path == "/nothing" else 200)
        self.send_header("Content-Length", str(10**9 if self.path == "/long" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _without_end(self) -> None:
        try:
            while True:
                self.wfile.write(bytes(65536))
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever).start()
    yield server.server_port
    STOP.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def client(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    hosts = f"127.0.0.1:{port},localhost:{port},127.0.0.0/31,::1"
    with serving(folder, allow_url_hosts=hosts, max_body_bytes=LIMIT) as client:
        yield client


def ask(client: TestClient, url: str, **options: Any) -> Any:
    key = {"Authorization": "Bearer secret", "Cookie": "a=b"}
    return client.post("/segment", json={"url": url, **options}, headers=key)


@pytest.mark.parametrize("path", ["photo.png", "once"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_photo_is_fetched(client: TestClient, port: int, host: str, path: str) -> None:
    answer = ask(client, f"http://{host}:{port}/{path}", output="mask")
    assert answer.status_code == 200, answer.text
    assert (opened(answer.content) == onnx_models.expected(photo())).all()


def test_nothing_of_the_caller_is_forwarded_and_the_host_is_named(
    client: TestClient, port: int
) -> None:
    SEEN.clear()
    assert ask(client, f"http://localhost:{port}/photo.png?a=b#c").status_code == 200
    ((path, headers),) = SEEN
    assert path == "/photo.png?a=b"
    assert headers["host"] == f"localhost:{port}"
    assert headers.keys().isdisjoint({"authorization", "cookie", "referer", "x-request-id"})


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:{port}/nothing", "answered 404"),
        ("http://127.0.0.1:{port}/loop", "more than 3 times"),
        ("http://127.0.0.1:{port}/private", "not in the service's --allow-url-hosts"),
        ("http://127.0.0.1:{port}/decimal", "not in the service's --allow-url-hosts"),
        ("http://127.0.0.1:{port}/file", "not in the service's --allow-url-hosts"),
        ("http://127.0.0.1:{port}/user", "user name"),
        ("http://127.0.0.1/photo.png", "cannot be fetched"),
        ("http://2130706433:{port}/photo.png", "not in the service's"),
        ("http://0x7f.1:{port}/photo.png", "not in the service's"),
        ("http://[::ffff:127.0.0.1]:{port}/photo.png", "not in the service's"),
        ("http://example.org/", "not in the service's"),
        ("file:///etc/passwd", "not in the service's"),
        ("http://a@127.0.0.1:{port}/photo.png", "user name"),
        ("http://" + "a" * 3000, "characters"),
        ("http://[/", "not in the service's"),
        ("//x", "not in the service's"),
    ],
)
def test_other_urls_are_refused(client: TestClient, port: int, url: str, says: str) -> None:
    answer = ask(client, url.format(port=port))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request"), answer.text
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("path", ["endless", "long"])
def test_bytes_are_limited(client: TestClient, port: int, path: str) -> None:
    assert ask(client, f"http://127.0.0.1:{port}/{path}").json()["code"] == "body-too-large"


def test_time_is_limited(client: TestClient, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.2)
    assert "within 0.2 s" in ask(client, f"http://127.0.0.1:{port}/slow").json()["detail"]


def test_a_name_of_a_private_address_is_refused_even_if_every_host_is_allowed(
    port: int, tmp_path: Any
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, allow_url_hosts=f"*,localhost:{port}") as client:
        SEEN.clear()
        for host in ("localhost", "127.0.0.1"):
            answer = ask(client, f"http://{host}:{port}/photo.png")
            assert answer.status_code == 400
        assert "not public" in ask(client, f"http://localhost:{port}/").json()["detail"]
        assert SEEN == []


@pytest.mark.parametrize(
    "url", ["http://a..b/", "http://.x/", f"http://{'e' * 70}.x/", "http://[::", "http://a\0b/"]
)
def test_a_host_that_is_no_name_is_refused(tmp_path: Path, url: str) -> None:
    """Also for jobs, before one is made."""
    onnx_models.save(tmp_path / "tiny.onnx")
    jobs = tmp_path / "jobs"
    with serving(tmp_path, allow_url_hosts="*", jobs=jobs, request_timeout_ms=5000) as client:
        refused = ask(client, url)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid-request")
        answer = client.post("/jobs", json={"urls": [url]})
        if answer.status_code == 202:  # the name is looked up later
            name = answer.json()["id"]
            while (job := client.get(f"/jobs/{name}").json())["ended"] is None:
                time.sleep(0.02)
            assert (job["state"], job["failed"]) == ("done", 1)
        else:
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")


def test_without_the_setting_urls_are_refused(tmp_path: Any) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path) as client:
        assert "--allow-url-hosts" in ask(client, "http://example.org/a.jpg").json()["detail"]


def test_a_slow_name_server_takes_no_thread_that_others_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing can end a look-up. Jobs, reloads and files use the threads of the event loop."""
    looked_up, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        looked_up.release()
        go_on.wait(20)
        return []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        fetcher = urls.Fetcher(AllowList.of(("*",)), LIMIT)
        waiting = [asyncio.create_task(fetcher.fetch(f"http://{name}.test/")) for name in "abc"]
        while sum(looked_up.acquire(blocking=False) for _ in waiting) == 0:
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5) == 7
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert "no photo came within 0.5 s" in str(outcome)

    monkeypatch.setattr("socket.getaddrinfo", slow)
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.5)
    try:
        asyncio.run(scenario())
    finally:
        go_on.set()


def test_certificates_that_cannot_be_read_are_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise every request with a URL is refused with `No such file or directory`."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(StartupError, match=r"SSL_CERT_FILE=/nowhere\.pem: No such file"):
        urls.Fetcher(AllowList.of(("*",)), LIMIT)
