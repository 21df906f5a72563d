"""Start the rivals whose environments `make bench` has installed in build/rivals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from service import launch
from service.bench import vitals

FOLDER = Path(__file__).parents[3] / "build" / "rivals"


@dataclass(frozen=True)
class Rival:
    """A server that takes the same requests as the service."""

    name: str
    environment: str  # NAME.txt in this folder is its lock
    module: str
    flags: tuple[str, ...] = ()


def rivals(threads: int) -> tuple[Rival, ...]:
    """Return the servers; LitServe in both configurations that suit a CPU."""
    litserve = "service.bench.rivals.litserve_server"
    each = ("--workers", str(threads), "--threads", "1")
    return (
        Rival("LitServe", "litserve", litserve),
        Rival("LitServe, a worker per CPU", "litserve", litserve, each),
        Rival("FastAPI handler", "fastapi", "service.bench.rivals.fastapi_server"),
    )


def program(environment: str) -> str | None:
    """The interpreter of an environment, or None if it is not installed."""
    found = FOLDER / environment / "bin" / "python"
    return str(found) if found.exists() else None


@contextmanager
def servers(file: Path, threads: int) -> Iterator[dict[str, launch.Server]]:
    """Run all installed rivals on one exported file; yield name -> server."""
    with ExitStack() as stack:
        found = {}
        for rival in rivals(threads):
            python = program(rival.environment)
            if python is None:
                print(f"{rival.name} is not installed: run `make bench`", file=sys.stderr)
                continue
            flags = (str(file.resolve()), *rival.flags)
            found[rival.name] = stack.enter_context(_started(rival, python, flags))
        yield found


@contextmanager
def _started(rival: Rival, python: str, flags: tuple[str, ...]) -> Iterator[launch.Server]:
    # Show a rival's log only if it fails to start.
    with tempfile.TemporaryFile() as log, ExitStack() as stack:
        try:
            server = stack.enter_context(
                launch.module(rival.module, *flags, program=python, log=log)
            )
        except SystemExit:
            log.seek(0)
            print(log.read().decode(errors="replace"), file=sys.stderr)
            raise
        yield server
        workers = vitals.descendants(server.pid)
    for pid in workers:  # children of a server that does not end them itself
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class LiteRt:
    """A TFLite file in its own process; each call runs its image once."""

    def __init__(self, file: Path, image: Path, threads: int) -> None:
        """Start the process; raises RuntimeError if it does not become ready."""
        python = program("litert")
        if python is None:
            raise RuntimeError("LiteRT is not installed: run `make bench`")
        command = [python, "-m", "service.bench.rivals.litert", str(file), str(image)]
        self._process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[str] = self._process.stdin
        self._back: IO[str] = self._process.stdout
        if self._back.readline() != "ready\n":
            raise RuntimeError(f"{file} does not run in LiteRT")

    def __call__(self, _: object) -> None:
        """Run the image once."""
        self._to.write("run\n")
        self._to.flush()
        if not self._back.readline():
            raise RuntimeError("LiteRT has ended")

    def cpu_s(self) -> float:
        """The processor time that the process has used so far, in steps of 10 ms."""
        return vitals.read(self._process.pid).cpu_s

    def close(self) -> None:
        """End the process."""
        self._to.close()
        self._process.wait(timeout=10)
        self._back.close()
