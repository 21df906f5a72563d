"""The process: starts, serves, stops on SIGTERM with 0, and refuses with a reason."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service import __main__ as cli
from service.demo import free_port, wait_until_ready
from tests.service import onnx_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx_models.save(tmp_path / "tiny.onnx")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "--models", str(folder), "--port", str(port)],
        stderr=subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
    finally:
        process.kill()
        process.communicate()


def test_sigterm_ends_a_serving_process_with_0(
    server: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, process = server
    assert httpx.get(f"{url}/models").json()["models"][0]["name"] == "tiny"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


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
        (["--port", "http"], 2, "--port 'http': Input should be a valid integer"),
        (["--device", "tpu"], 2, "--device 'tpu'"),
        (["--models", "/nonexistent"], 1, "--models /nonexistent: No such file"),
        (["--models", "."], 1, "no .onnx file"),
    ],
)
def test_what_cannot_start_says_why(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    assert says in capsys.readouterr().err


def test_an_environment_variable_sets_what_no_flag_sets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPLAB_PORT", "none")
    assert cli.main([]) == 2
    assert "--port 'none'" in capsys.readouterr().err
