"""Prometheus with the shipped files watches a real service; only its times are shortened."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from service.launch import free_port
from tests.docker.proxies import HEADERS, PHOTO
from tests.service import onnx_models
from tests.service.processes import running

SHIPPED = Path(__file__).parents[2] / "docker" / "prometheus"
PATIENCE_S = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is not installed (Debian package of this name)",
    ),
]


@dataclass(frozen=True)
class Watched:
    service: str
    process: subprocess.Popen[bytes]
    prometheus: str

    def get(self, path: str, **query: str) -> Any:
        return httpx.get(f"{self.prometheus}/api/v1/{path}", params=query).json()["data"]

    def firing(self) -> set[str]:
        alerts = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait_for(self, alert: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while alert not in self.firing():
            assert time.monotonic() < deadline, (alert, self.get("rules"))
            time.sleep(0.3)


def hurried(text: str) -> str:
    """A shipped file with minutes and scrapes of a second or a few."""
    text = re.sub(r"\[\d+m\]", "[5s]", text)
    text = re.sub(r"\bfor: \d+m", "for: 2s", text)
    return text.replace("scrape_interval: 5s", "scrape_interval: 1s\n  evaluation_interval: 1s")


def start(here: Path, target: str) -> tuple[subprocess.Popen[bytes], str]:
    for name in ("prometheus.yaml", "alerts.yaml"):
        text = hurried((SHIPPED / name).read_text(encoding="utf-8"))
        (here / name).write_text(text.replace("deeplab:9464", target), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={here}/prometheus.yaml"]
    command += [f"--storage.tsdb.path={here}/data", f"--web.listen-address={address}"]
    with (here / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log), f"http://{address}"


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    onnx_models.save(tmp_path / "tiny.onnx")
    port = free_port()
    flags = ("--max-requests", "1", "--metrics-port", str(port))
    with running(tmp_path, *flags) as (url, process):
        prometheus, address = start(tmp_path, f"127.0.0.1:{port}")
        try:
            yield Watched(url, process, address)
        finally:
            prometheus.terminate()
            prometheus.wait(20)


def wait_for_scrapes(watched: Watched) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            (result,) = watched.get("query", query="count_over_time(deeplab_ready[1m])")["result"]
            if float(result["value"][1]) >= 4:
                return
        except (httpx.TransportError, ValueError):
            pass  # Prometheus is just starting, or has no sample yet
        time.sleep(0.3)
    raise AssertionError("Prometheus has not asked the service")


def test_alerts_fire_on_real_faults_and_not_on_ordinary_work(watched: Watched) -> None:
    """Overload, deadlines and a killed service; before them, one patient client."""
    wait_for_scrapes(watched)
    with httpx.Client(base_url=watched.service, headers=HEADERS, timeout=60) as client:

        def ask(limit_ms: int) -> int:
            headers = {"X-Request-Timeout-Ms": str(limit_ms)}
            return client.post(
                "/segment?output=color,npz", content=PHOTO, headers=headers
            ).status_code

        for _ in range(20):
            assert ask(20_000) == 200
            time.sleep(0.2)
        assert watched.firing() == set()
        with repeated(lambda: ask(20_000), clients=8):
            watched.wait_for("DeeplabOverloaded")
        with repeated(lambda: ask(1), clients=1):
            watched.wait_for("DeeplabDeadlines")
    watched.process.kill()
    watched.wait_for("DeeplabDown")


@contextmanager
def repeated(ask: Callable[[], int], clients: int) -> Iterator[None]:
    """Ask again and again from so many threads for as long as the block runs."""
    done = Event()

    def work() -> None:
        while not done.is_set():
            ask()
            done.wait(0.05)

    with ThreadPoolExecutor(clients) as pool:
        for _ in range(clients):
            pool.submit(work)
        try:
            yield
        finally:
            done.set()
