"""The documented nginx block, running in front of two services, under overload."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("nginx") is None or shutil.which("openssl") is None,
        reason="nginx and openssl are not installed (Debian packages of these names)",
    ),
]


@dataclass(frozen=True)
class Front:
    url: str
    error_log: Path
    logs: tuple[Path, Path]  # of the services

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=False, timeout=60, **options)  # type: ignore[arg-type]


def documented(ports: dict[str, int], folder: Path) -> str:
    """The block of the page, with the ports and the certificate of this test."""
    (block,) = re.findall(r"```nginx\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for port, ours in ports.items():
        assert re.search(rf"\b{port}\b", block)
        block = re.sub(rf"\b{port}\b", str(ours), block)
    return str(block).replace("/etc/ssl", str(folder))


def certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=segment.example.org"]
    command += ["-keyout", str(folder / "segment.key"), "-out", str(folder / "segment.pem")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second", "nginx")]
    first, second, here = folders
    for each in (first, second):
        onnx_models.save(each / "tiny.onnx")
    certificate(here)
    with running(first, *FLAGS) as (one, _), running(second, *FLAGS) as (two, _):
        port = free_port()
        ports = {"8001": int(one.rpartition(":")[2]), "8002": int(two.rpartition(":")[2])}
        config = here / "nginx.conf"
        folders_of = "".join(
            f"{kind}_temp_path {here}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off; pid {here}/pid; error_log {here}/error.log warn;\n"
            "events { worker_connections 1024; }\n"
            f"http {{ access_log off;\n{folders_of}{documented(ports | {'443': port}, here)} }}\n"
        )
        command = ["nginx", "-p", str(here), "-c", str(config), "-e", str(here / "error.log")]
        nginx = subprocess.Popen(command)
        try:
            front = Front(
                f"https://127.0.0.1:{port}", here / "error.log", (first / LOG, second / LOG)
            )
            wait_for(front, nginx)
            yield front
        finally:
            nginx.terminate()
            nginx.wait(20)


def wait_for(front: Front, nginx: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert nginx.poll() is None, front.error_log.read_text()
        try:
            with front.client() as client:
                assert client.get("/readyz").status_code == 200
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("nginx does not answer")


def test_overload_is_503_with_retry_after_and_never_502(front: Front) -> None:
    """With nginx's default max_fails=1, busy replicas are left out: 584 of 600 requests got 502."""
    with front.client() as client, ThreadPoolExecutor(16) as pool:

        def ask(_: int) -> httpx.Response:
            return client.post("/segment?output=color,npz", content=PHOTO, headers=HEADERS)

        answers = list(pool.map(ask, range(120)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503}, statuses
        assert statuses[200] >= 5, statuses  # the rest is refused at once
        for answer in answers:
            if answer.status_code == 503:
                assert answer.json()["code"] == "overloaded"
                assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/segment", content=PHOTO, headers=HEADERS).status_code == 200
    assert "temporary file" not in front.error_log.read_text()


def test_both_replicas_know_who_asked(front: Front) -> None:
    """A client at another address of this host than the proxy."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2", verify=False)
    with front.client(transport=transport) as client:
        for _ in range(4):
            assert client.get("/models/tiny").status_code == 200
    time.sleep(0.5)
    for log in front.logs:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        clients = {line["client"] for line in lines if line.get("path") == "/models/tiny"}
        assert clients <= {"127.0.0.2"}
    assert "127.0.0.2" in front.logs[0].read_text() + front.logs[1].read_text()


def test_the_proxys_own_refusal_has_the_form_of_the_services(front: Front) -> None:
    with front.client() as client:
        answer = client.post("/segment", content=bytes(34_000_000), headers=HEADERS)
    assert answer.status_code == answer.json()["status"] == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "body-too-large"


def test_metrics_and_reload_stay_inside(front: Front) -> None:
    with front.client() as client:
        assert client.get("/metrics").status_code == 403
        assert client.post("/models/tiny/reload").status_code == 403
        assert client.get("/models").status_code == 200
