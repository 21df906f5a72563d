"""The service with decoder processes: what clients and operators see."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.decoders import processes
from service.decoders.processes import Processes
from service.http.app import create_app
from service.http.server import Watchdog
from service.inference import models
from service.settings import Settings
from tests.service import onnx_models
from tests.service.processes import LOG, running
from tests.service.web import photo, png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="decoder processes need Linux"),
]

RAW = {"Content-Type": "application/octet-stream"}


def bomb() -> bytes:
    """A small JPEG of 49 megapixels and 80 scans: a second for an overlay."""
    out = io.BytesIO()
    Image.new("RGB", (7000, 7000), "blue").save(out, "JPEG", progressive=True)
    data = out.getvalue()
    empty = bytes.fromhex("ffda0008010100010100")
    return data[:-2] + empty * (80 - data.count(b"\xff\xda")) + data[-2:]


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_photo_beyond_its_deadline_is_abandoned_and_the_service_ends_whatever_runs(
    tmp_path: Path,
) -> None:
    """504 for the bomb, 200 for others, a count in /metrics; SIGTERM ends a stopped decoder too."""
    onnx_models.save(tmp_path / "tiny.onnx")
    hostile, deadline = bomb(), {**RAW, "X-Request-Timeout-Ms": "300"}
    with running(tmp_path, "--shutdown-timeout-s", "1", "--decoders", "1") as (url, process):
        none = 'deeplab_decoders_ended_total{reason="abandoned"} 0.0'
        while none in httpx.get(f"{url}/metrics").text:  # it may be late before it is decoded
            late = httpx.post(f"{url}/segment?output=overlay", content=hostile, headers=deadline)
            assert late.status_code == 504
            answer = httpx.post(f"{url}/segment", content=png(photo()), headers=RAW)
            assert answer.status_code == 200
        sending = threading.Thread(target=_post_ignoring, args=(url, hostile))
        sending.start()
        children = _grandchildren(process.pid)
        until(lambda: any(_cpu(child) > 0.1 for child in _grandchildren(process.pid)))
        for child in _grandchildren(process.pid):
            os.kill(child, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        sending.join(20)
        until(lambda: not any(_runs(child) for child in children))
    assert "Traceback" not in (tmp_path / LOG).read_text()


def _post_ignoring(url: str, body: bytes) -> None:
    try:
        httpx.post(f"{url}/segment?output=overlay", content=body, headers=RAW)
    except httpx.TransportError:
        return


def _grandchildren(pid: int) -> list[int]:
    return [each for child in _children(pid) for each in _children(child)]


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(each) for each in (task / "children").read_text().split()]
    return found


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ["X", *["0"] * 20]
    return text.rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    return int(_stat(pid)[11]) / os.sysconf("SC_CLK_TCK")


def _runs(pid: int) -> bool:
    return _stat(pid)[0] not in "ZX"


def test_service_is_not_ready_while_waiting_photos_make_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/readyz answers 503 while the only decoder is stopped, and /livez still answers 200."""
    onnx_models.save(tmp_path / "tiny.onnx")
    monkeypatch.setattr(processes, "STUCK_S", 0.1)
    settings = Settings(models=tmp_path, device="cpu", threads=1)
    decoders = Processes(light=1, heavy=1, max_pixels=10**8)
    app = create_app(settings, models.load(settings), processes=decoders)
    with TestClient(app) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        (light, heavy) = _children(decoders.nursery_pid)
        for each in (light, heavy):
            os.kill(each, signal.SIGSTOP)
        sending = threading.Thread(
            target=client.post, args=("/segment",), kwargs={"content": png(photo()), "headers": RAW}
        )
        sending.start()
        until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/livez").status_code == 200
        for each in (light, heavy):
            os.kill(each, signal.SIGCONT)
        sending.join(20)
        until(lambda: client.get("/readyz").status_code == 200)


def test_watchdog_ends_a_process_whose_threads_do_not() -> None:
    """A thread that never ends keeps Python from exiting; the watchdog's code is the exit code."""
    code = (
        "import threading, time\nfrom service.http.server import Watchdog\n"
        "watchdog = Watchdog(0.2); watchdog.start(); watchdog.code = 3\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode == 3
    assert time.monotonic() - began < 30
    assert Watchdog(0.2).code == 1
