"""Servers run on the interpreter of the serving environment, with its packages and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service import launch
from tests.service import onnx_models
from tests.service.processes import running

SERVING = os.environ.get(launch.PYTHON_VARIABLE)
NAMED = pytest.mark.skipif(
    not SERVING, reason=f"{launch.PYTHON_VARIABLE} is not set: `make test` sets it"
)
LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


def native_libraries(pid: int) -> set[Path]:
    """The shared libraries that a process has loaded."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if ".so" in line}


def test_servers_run_on_the_interpreter_that_the_variable_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = tmp_path / "python"
    named.symlink_to(sys.executable)
    monkeypatch.setenv(launch.PYTHON_VARIABLE, str(named))
    assert launch.python() == str(named)


@pytest.mark.parametrize("value", ["", None])
def test_without_the_variable_servers_run_on_the_same_interpreter(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(launch.PYTHON_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(launch.PYTHON_VARIABLE, value)
    assert launch.python() == sys.executable


def test_an_interpreter_that_is_missing_is_an_error_and_no_other_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(launch.PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="none: no such program"):
        launch.python()


def assert_serving_environment(pid: int) -> None:
    """ONNX Runtime and every other native library come from that environment."""
    assert SERVING is not None
    environment = Path(SERVING).parent.parent
    packages = {path for path in native_libraries(pid) if "site-packages" in path.parts}
    assert any("onnxruntime" in path.parts for path in packages)
    assert all(path.is_relative_to(environment) for path in packages), packages


@pytest.mark.slow
@LINUX
@NAMED
def test_what_the_tests_start_is_the_serving_environment(tmp_path: Path) -> None:
    """Nothing of the development environment is in the process."""
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path) as (_, process):
        assert_serving_environment(process.pid)


@pytest.mark.slow
@LINUX
@NAMED
def test_what_is_measured_is_the_serving_environment(tmp_path: Path) -> None:
    """Nothing of the development environment is in the process."""
    onnx_models.save(tmp_path / "tiny.onnx")
    with launch.service(tmp_path, "--device", "cpu") as server:
        assert_serving_environment(server.pid)


@pytest.mark.slow
@LINUX
def test_event_loop_and_parser_do_not_depend_on_installed_packages(tmp_path: Path) -> None:
    """Ray installs uvloop and httptools here; the service uses neither."""
    pytest.importorskip("uvloop")
    pytest.importorskip("httptools")
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path, program=sys.executable) as (url, process):
        assert httpx.get(f"{url}/livez").status_code == 200
        names = {path.name.partition(".")[0] for path in native_libraries(process.pid)}
    assert "onnxruntime_pybind11_state" in names
    assert names.isdisjoint({"loop", "parser", "url_parser"}), names


@NAMED
def test_the_serving_environment_has_the_versions_of_the_images_lock() -> None:
    """Tests and measurements run with the versions of that engine's image."""
    assert SERVING is not None
    engine = Path(SERVING).parents[1].name.removeprefix(".venv-serve-")
    lock = Path(__file__).parents[2] / "docker" / f"requirements-{engine}.txt"
    text = lock.read_text(encoding="utf-8")
    locked = {line.partition(" ")[0] for line in text.splitlines() if "==" in line}
    names = [pin.partition("==")[0] for pin in locked]
    code = "import sys; from importlib.metadata import version as v; "
    code += "print(*(f'{name}=={v(name)}' for name in sys.argv[1:]))"
    found = subprocess.check_output([SERVING, "-c", code, *names], text=True)
    assert set(found.split()) == locked, "run make again: the lock has changed"
