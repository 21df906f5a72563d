"""Find this machine's container engine, and start containers that end with their test.

It prefers `container.sh` in the shared folder, which also works without a registry,
then docker, then podman.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.launch import free_port
from tests.shared import SHARED

ROOT = Path(__file__).parents[2]
SCRIPT = SHARED / "tools" / "container.sh"
BUILD_TIMEOUT_S = 900
START_TIMEOUT_S = 120


BASE = "docker.io/library/python:3.11-slim-bookworm"  # what our Dockerfiles start from


class EngineMissing(Exception):
    """Raised with the reason if this machine cannot build images or start containers."""


class Engine:
    """Run docker, podman or container.sh by their command lines."""

    def __init__(self, build: list[str], run: list[str], manage: list[str]) -> None:
        self._build = build
        self._run = run
        self._manage = manage

    def build(self, dockerfile: str, tag: str, *options: str) -> None:
        """Build a Dockerfile; raises CalledProcessError with the engine's output."""
        file = ["-f", dockerfile, "-t", tag, "."]
        if self._build[0] == str(SCRIPT):
            file = [dockerfile, tag.removeprefix("localhost/")]  # the script adds the rest
        call([*self._build, *file, *options], timeout_s=BUILD_TIMEOUT_S)

    def check_build(self) -> None:
        """Build a Dockerfile that does nothing; raises EngineMissing with the engine's output."""
        with tempfile.TemporaryDirectory() as folder:
            trivial = Path(folder) / "Dockerfile"
            trivial.write_text(f"FROM {BASE}\nRUN true\n", encoding="ascii")
            tried(lambda: self.build(str(trivial), "localhost/deeplab-test:probe"), "build")

    def check_start(self, options: Sequence[str], base: str = BASE) -> None:
        """Run `true` in a bare base image; raises EngineMissing with the engine's output."""
        # A port is published because networks are what rootless engines often lack.
        publish = f"--publish=127.0.0.1:{free_port()}:8000"
        command = [*self._run, "--rm", publish, *options, base, "true"]
        tried(lambda: call(command, timeout_s=BUILD_TIMEOUT_S), "start")

    def start(self, name: str, image: str, *options: str) -> Container:
        """Run an image in the background, with its port 8000 on a free port of this host."""
        port = free_port()
        publish = f"127.0.0.1:{port}:8000"
        call([*self._run, "--detach", "--name", name, "--publish", publish, *options, image])
        return Container(self, name, f"http://127.0.0.1:{port}")

    def manage(self, *arguments: str, merge: bool = False, timeout_s: float = 120) -> str:
        """Run any other command, such as `inspect NAME`; return stdout, with stderr if `merge`."""
        return call([*self._manage, *arguments], merge=merge, timeout_s=timeout_s)

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return what the engine reports about an "image" or a "container"."""
        found: dict[str, Any] = json.loads(self.manage(kind, "inspect", name))[0]
        return found


class Container:
    """A running container of the service."""

    def __init__(self, engine: Engine, name: str, url: str) -> None:
        self.url = url
        self._engine = engine
        self._name = name

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Poll /readyz; raises RuntimeError with the log when the container takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"not ready within {timeout_s} s:\n{self.logs()}")

    def inspect(self) -> dict[str, Any]:
        """Return what the engine reports about this container."""
        return self._engine.inspect("container", self._name)

    def execute(self, *command: str, timeout_s: float = 120) -> str:
        """Run a command in the container; return its stdout."""
        return self._engine.manage("exec", self._name, *command, timeout_s=timeout_s)

    def python(self, code: str) -> str:
        """Run Python code in the container; return its stdout without the last newline."""
        return self.execute("python", "-c", code).rstrip("\n")

    def logs(self) -> str:
        """Return everything that the service wrote."""
        return self._engine.manage("logs", self._name, merge=True)

    def signal(self, name: str) -> None:
        """Send a signal to the service."""
        self._engine.manage("kill", "--signal", name, self._name)

    def wait(self) -> int:
        """Wait until the container ends; return its exit code."""
        return int(self._engine.manage("wait", self._name).split()[-1])

    def remove(self) -> None:
        """Remove the container, running or not."""
        self._engine.manage("rm", "--force", self._name)


@functools.cache
def engine() -> Engine:
    """Return this machine's engine; raises EngineMissing."""
    if SCRIPT.exists():
        script = str(SCRIPT)
        try:
            call([script, "base"], timeout_s=BUILD_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise EngineMissing(f"{SCRIPT.name} has no base image: {error.stderr}") from None
        return Engine([script, "build"], [script, "run"], [script, "podman"])
    refusals = []
    for name in filter(shutil.which, ("docker", "podman")):
        try:
            call([name, "info"])
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            refusals.append(f"{name} does not answer: {last_words(error)}")
        else:
            return Engine([name, "build"], [name, "run"], [name])
    raise EngineMissing("; ".join(refusals) or f"no docker, no podman and no {SCRIPT}")


@functools.cache
def builder() -> Engine:
    """Return an engine that can build images; raises EngineMissing."""
    found = engine()
    found.check_build()
    return found


@functools.cache
def starter(*options: str) -> Engine:
    """Return an engine that can build images and start containers with these options."""
    found = builder()
    found.check_start(options)
    return found


def skip_without(make: Callable[[], Engine]) -> Engine:
    """Return the engine that `make` returns; on EngineMissing, skip the test with its reason."""
    try:
        return make()
    except EngineMissing as missing:
        pytest.skip(str(missing))


def tried(work: Callable[[], object], what: str) -> None:
    """Call `work`; raises EngineMissing with the last line of the engine's output."""
    try:
        work()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise EngineMissing(f"the container engine cannot {what}: {last_words(error)}") from None


def last_words(error: subprocess.CalledProcessError | subprocess.TimeoutExpired) -> str:
    """Return the last line that a failed command wrote to its stderr."""
    said = error.stderr.decode() if isinstance(error.stderr, bytes) else error.stderr
    lines = (said or "").strip().splitlines() or [str(error)]
    return lines[-1]


def call(command: list[str], *, timeout_s: float = 120, merge: bool = False) -> str:
    """Run a command in the repository's root and return its stdout.

    CalledProcessError has a note with the command's stderr.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merge else subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(f"{done.stdout[-2000:]}\n{(done.stderr or '')[-2000:]}")
        raise
    return done.stdout
