"""Run the service as a process of its own, in the serving environment that the Makefile names.

Without DEEPLAB_SERVE_PYTHON it runs in the environment of the tests.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.launch import free_port, python, wait_until_ready

LOG = "service.log"  # in the models' folder; a pipe that nobody empties would block the service


@contextmanager
def running(
    folder: Path, *flags: str, program: str | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve the models of a folder; give the URL and the process once it is ready."""
    port = free_port()
    command = [program or python(), "-m", "service", "--models", str(folder), "--port", str(port)]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen([*command, "--device", "cpu", *flags], stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
    finally:
        process.kill()
        process.wait()
