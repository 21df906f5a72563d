"""ONNX Runtime sends nothing to Microsoft when the service, the export or an actor loads it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service import launch
from tests.service.onnx_models import save

WAIT_S = 60  # enough for an ONNX Runtime with telemetry to look up Microsoft's host
CODE = """
import time
from pathlib import Path
{before}
from service.inference.engine import Engine, EngineOptions
Engine(Path({model!r}), EngineOptions("cpu")).warm_up(1)
time.sleep(99)
"""


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the resolver that records names")
    target = tmp_path_factory.mktemp("spy") / "spy.so"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    source = Path(__file__).with_name("spy.c")
    subprocess.run([compiler, *flags, "-o", target, source], check=True)
    return target


class Watched:
    """A process that runs a model, its home directory and the names it looks up."""

    def __init__(self, folder: Path, spy: Path, program: str, before: str, **more: str) -> None:
        self.home, self.log = folder / "home", folder / "names"
        self.home.mkdir(parents=True)
        code = CODE.format(before=before, model=str(save(folder / "tiny.onnx")))
        own = {"HOME": str(self.home), "SPY_LOG": str(self.log), "LD_PRELOAD": str(spy)}
        kept = {
            name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"
        }
        self.process = subprocess.Popen(
            [program, "-c", code], env=kept | own | more, stderr=subprocess.DEVNULL
        )

    def names(self) -> list[str]:
        """Names looked up so far."""
        return self.log.read_text().split() if self.log.exists() else []

    def files(self) -> list[Path]:
        """Files in the home directory."""
        return [path for path in self.home.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_no_name_is_looked_up_and_no_file_written(tmp_path: Path, spy: Path) -> None:
    """By default ONNX Runtime does both, so the tests above would notice."""
    serving = launch.python()
    quiet = [
        Watched(tmp_path / "service", spy, serving, ""),
        Watched(tmp_path / "export", spy, sys.executable, "import export.parity"),
    ]
    telling = Watched(tmp_path / "telling", spy, serving, "", ORT_DISABLE_TELEMETRY="0")
    try:
        deadline = time.monotonic() + WAIT_S
        while not (telling.names() and telling.files()) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not telling.names():
            pytest.skip("this build of ONNX Runtime sends no telemetry")
        for each in quiet:
            assert each.process.poll() is None
            assert each.names() == []
            assert each.files() == []
    finally:
        for each in (*quiet, telling):
            each.process.kill()
            each.process.wait()
