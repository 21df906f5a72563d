"""The service as a process: it starts, serves, stops on SIGTERM with 0, or says why it cannot."""

from __future__ import annotations

import http.client
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from service import __main__ as cli
from tests.service import onnx_models
from tests.service.processes import LOG, running
from tests.service.web import photo, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx_models.save(tmp_path / "tiny.onnx")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with running(folder) as (url, process):
        yield url, process


@pytest.mark.slow
def test_sigterm_ends_a_serving_process_with_0(
    server: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, process = server
    assert httpx.get(f"{url}/models").json()["models"][0]["name"] == "tiny"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


@pytest.mark.slow
def test_sigterm_under_load_loses_no_request(folder: Path) -> None:
    """Clients that stop sending once /readyz answers 503 see no error."""
    statuses: list[int] = []
    closing: list[bool] = []
    red = threading.Event()

    def load(url: str) -> None:
        with httpx.Client(timeout=20) as client:
            while not red.is_set():
                headers = {"Content-Type": "image/png"}
                answer = client.post(f"{url}/segment", content=png(photo()), headers=headers)
                statuses.append(answer.status_code)
                closing.append(answer.headers.get("connection") == "close")

    with running(folder, "--drain-delay-s", "600") as (url, process):
        clients = [threading.Thread(target=load, args=[url]) for _ in range(4)]
        for client in clients:
            client.start()
        wait_for(lambda: len(statuses) >= len(clients))
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        before = len(statuses)
        wait_for(lambda: len(statuses) > before + 4)  # a balancer takes a while to notice
        red.set()
        for client in clients:
            client.join(20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert set(statuses) == {200}
    assert closing[-1]
    assert not closing[0]


def wait_for(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_second_signal_ends_the_drain_at_once(folder: Path) -> None:
    with running(folder, "--drain-delay-s", "60") as (url, process):
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/readyz").status_code == 200:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.slow
def test_a_dripping_body_is_cut_off(folder: Path) -> None:
    with running(folder, "--body-timeout-s", "0.5") as (url, _):
        status, body = drip(url, {"Content-Length": "100000"})
        assert (status, body["code"]) == (408, "body-timeout")
        assert httpx.get(f"{url}/readyz").status_code == 200


@pytest.mark.slow
def test_a_deadline_covers_the_body(folder: Path) -> None:
    with running(folder) as (url, _):
        began = time.monotonic()
        status, body = drip(url, {"Content-Length": "100000", "X-Request-Timeout-Ms": "300"})
        assert (status, body["code"]) == (504, "deadline-exceeded")
        assert time.monotonic() - began < 5


def drip(url: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Send a body byte by byte until an answer comes."""
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)) as connection:
        connection.putrequest("POST", "/segment")
        for name, value in {**headers, "Content-Type": "image/png"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        for _ in range(400):
            connection.send(b"x")
            if select.select([connection.sock], [], [], 0.05)[0]:
                break
        with connection.getresponse() as answer:
            assert answer.headers["Connection"] == "close"
            return answer.status, json.loads(answer.read())


@pytest.mark.slow
def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted_as_gone(folder: Path) -> None:
    with running(folder) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /segment HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nabc"
            )
            time.sleep(0.2)
        deadline = time.monotonic() + 10
        while "deeplab_cancelled_total 1.0" not in (text := httpx.get(f"{url}/metrics").text):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert "Traceback" not in (folder / LOG).read_text()


@pytest.mark.slow
def test_json_log_lines_carry_the_request_id(folder: Path) -> None:
    with running(folder, "--log-format", "json") as (url, process):
        headers = {"X-Request-ID": "mine-1", "Content-Type": "image/png"}
        httpx.post(f"{url}/segment", content=b"junk", headers=headers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    (access,) = [line for line in lines if line["logger"] == "service.access"]
    assert access["request_id"] == "mine-1"
    assert (access["path"], access["status"]) == ("/segment", 400)
    assert (access["problem"], access["level"]) == ("invalid-image", "info")
    assert access["message"].endswith(" ms invalid-image from 127.0.0.1")
    assert access["ms"] > 0


@pytest.mark.slow
def test_a_port_that_is_taken_ends_the_process_with_1(
    server: tuple[str, subprocess.Popen[bytes]], folder: Path
) -> None:
    port = server[0].rpartition(":")[2]
    command = [sys.executable, "-m", "service", "--models", str(folder), "--port", port]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert f"--port {port}: Address already in use" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--port", "http"], 2, "--port='http': Input should be a valid integer"),
        (["--device", "tpu"], 2, "--device='tpu'"),
        (["--rate-limit-per-minute", "60"], 2, "applies to each key: set --api-keys"),
        (["--models", "/nonexistent"], 1, "--models /nonexistent: No such file"),
        (["--models", "."], 1, "no .onnx file"),
    ],
)
def test_what_cannot_start_says_why(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_an_environment_variable_sets_what_no_flag_sets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPLAB_PORT", "none")
    assert cli.main([]) == 2
    assert "--port='none'" in capsys.readouterr().err
