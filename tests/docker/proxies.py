"""A documented proxy in front of two services, and what every such proxy must do."""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.launch import free_port
from tests.service import onnx_models
from tests.service.processes import LOG, running
from tests.service.web import png

DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"
PHOTO = png(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))
HEADERS = {"Content-Type": "image/png"}
FLAGS = ("--max-requests", "1", "--trusted-proxies", "127.0.0.1", "--log-format", "json")


@dataclass(frozen=True)
class Front:
    """A running proxy."""

    url: str
    log: Path
    services: tuple[Path, Path]  # their logs

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=False, timeout=60, **options)  # type: ignore[arg-type]


def documented(language: str, changes: dict[str, str]) -> str:
    """The page's block in this language, with the ports and files of this test."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for written, ours in changes.items():
        pattern = rf"(?<![\w/]){re.escape(written)}\b"
        assert re.search(pattern, block), written
        block = re.sub(pattern, ours, block)
    return str(block)


def certificate(folder: Path) -> None:
    """Write a certificate and its key in one file and in two, by the names of the page."""
    key, pem = folder / "segment.key", folder / "segment.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=segment.example.org", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (folder / "segment-with-key.pem").write_bytes(pem.read_bytes() + key.read_bytes())


@contextmanager
def in_front_of_two(
    make: pytest.TempPathFactory, command: Callable[[Path, dict[str, str]], list[str]]
) -> Iterator[Front]:
    """Two services that take one request at a time, and the proxy that ``command`` starts.

    ``command`` gets a folder with a certificate and the ports that replace those of the page.
    """
    first, second, here = (make.mktemp(name) for name in ("first", "second", "proxy"))
    for each in (first, second):
        onnx_models.save(each / "tiny.onnx")
    certificate(here)
    jobs = ("--jobs", str(make.mktemp("jobs")))
    with running(first, *FLAGS, *jobs) as (one, _), running(second, *FLAGS) as (two, _):
        port = str(free_port())
        ports = {"8001": one.rpartition(":")[2], "8002": two.rpartition(":")[2], "443": port}
        log = here / "log"
        with log.open("wb") as output:
            proxy = subprocess.Popen(command(here, ports), stdout=output, stderr=output)
        front = Front(f"https://127.0.0.1:{port}", log, (first / LOG, second / LOG))
        try:
            wait_until_ready(front.url, proxy)
            yield front
        finally:
            proxy.terminate()
            proxy.wait(20)


def first_answer(url: str, proxy: subprocess.Popen[bytes]) -> httpx.Response:
    """What the proxy says of /readyz once it listens."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and proxy.poll() is None:
        try:
            return httpx.get(f"{url}/readyz", verify=False, timeout=60)
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the proxy does not listen (exit status {proxy.poll()})")


def check_without_replicas(
    make: pytest.TempPathFactory, command: Callable[[Path, dict[str, str]], list[str]]
) -> None:
    """Nothing listens at the ports of the replicas: the answer has the form of the services'."""
    ports = {"8001": str(free_port()), "8002": str(free_port()), "443": str(free_port())}
    here = make.mktemp("alone")
    certificate(here)
    with subprocess.Popen(command(here, ports)) as proxy:
        try:
            answer = first_answer(f"https://127.0.0.1:{ports['443']}", proxy)
        finally:
            proxy.terminate()
    assert answer.status_code == answer.json()["status"] == 503
    assert answer.json()["code"] == "unreachable"
    assert answer.headers["retry-after"] == "5"


def wait_until_ready(url: str, proxy: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while first_answer(url, proxy).status_code != 200:
        assert time.monotonic() < deadline, "the proxy finds no service"
        time.sleep(0.1)


def flood(front: Front) -> list[httpx.Response]:
    """120 requests of 16 clients at a time."""
    with front.client() as client, ThreadPoolExecutor(16) as pool:

        def ask(_: int) -> httpx.Response:
            return client.post("/segment?output=color,npz", content=PHOTO, headers=HEADERS)

        return list(pool.map(ask, range(120)))


def statuses_of(answers: list[httpx.Response]) -> dict[int, int]:
    return dict(Counter(answer.status_code for answer in answers))


def check_client_address(front: Front) -> None:
    """The services' logs name a client that has another address than the proxy."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2", verify=False)
    with front.client(transport=transport) as client:
        for _ in range(4):
            assert client.get("/models/tiny").status_code == 200
    time.sleep(0.5)
    for log in front.services:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        clients = {line["client"] for line in lines if line.get("path") == "/models/tiny"}
        assert clients <= {"127.0.0.2"}
    assert "127.0.0.2" in "".join(log.read_text() for log in front.services)


def check_refusal(front: Front) -> None:
    """The proxy refuses too large a body in the form that the service has for it."""
    with front.client() as client:
        answer = client.post("/segment", content=bytes(34_000_000), headers=HEADERS)
    assert answer.status_code == answer.json()["status"] == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "body-too-large"


def check_inside(front: Front) -> None:
    """What operators use is closed to the outside."""
    with front.client() as client:
        assert client.get("/metrics").status_code == 403
        assert client.post("/models/tiny/reload").status_code == 403
        assert client.post("/models/tiny/shadow/promote").status_code == 403
        assert client.get("/models").status_code == 200


def check_jobs(front: Front) -> None:
    """All requests about a job reach the service that has it, and its photos may be many."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("a.png", PHOTO)
        archive.writestr("b.png", bytes(34_000_000))  # no photo, and too large for one
    kind = {"Content-Type": "application/zip"}
    with front.client() as client:
        sent = client.post("/jobs?output=mask", content=body.getvalue(), headers=kind)
        assert sent.status_code == 202, sent.text
        place = sent.headers["location"]
        with client.stream("GET", f"{place}/events") as events:
            told = [line for line in events.iter_lines() if line.startswith("data:")]
        assert json.loads(told[-1].removeprefix("data:"))["state"] == "done"
        assert {client.get(place).status_code for _ in range(8)} == {200}
        assert [each["id"] for each in client.get("/jobs").json()["jobs"]] == [sent.json()["id"]]
        whole = client.get(f"{place}/result").content
        rest = client.get(f"{place}/result", headers={"Range": "bytes=100-"})
        assert (rest.status_code, rest.content) == (206, whole[100:])
