"""Run a program under a real memory limit, which the kernel enforces by killing it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from service.bench import vitals

ROOT = Path("/sys/fs/cgroup")
JOIN = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
EVERY_S = 0.05


@dataclass
class Limit:
    """A limit; start programs with `prefix` before their command."""

    how: str
    prefix: tuple[str, ...] = ()
    folder: Path | None = None  # of a control group
    most_mib: float = 0.0  # the peak while `watching`
    _stop: threading.Event = field(default_factory=threading.Event)

    def kills(self) -> int:
        """Return how many processes the kernel has killed for memory."""
        if self.folder is None:
            return 0
        for name in ("memory.events", "memory.oom_control"):  # cgroup v2, v1
            with suppress(OSError):
                text = (self.folder / name).read_text(encoding="ascii")
                return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))
        return 0

    @contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Record the peak memory of a process and its children during the block."""
        watcher = threading.Thread(target=self._watch, args=(pid,))
        watcher.start()
        try:
            yield
        finally:
            self._stop.set()
            watcher.join()

    def _watch(self, pid: int) -> None:
        while not self._stop.is_set():
            with suppress(OSError):
                self.most_mib = max(self.most_mib, vitals.tree_mib(pid))
            time.sleep(EVERY_S)


@contextmanager
def limited(mib: int) -> Iterator[Limit]:
    """Give the strictest limit that this machine allows.

    It is a control group (v2 or v1), or else a scope of systemd. Where neither can be made, the
    limit has no prefix, and only `watching` shows how much memory was used.
    """
    for make in (_v2, _v1):
        with suppress(OSError):
            folder = make(mib)
            try:
                yield Limit("control group", (*JOIN, str(folder)), folder)
            finally:
                _remove(folder)
            return
    user = ("--user",) if os.geteuid() else ()
    limits = ("-p", f"MemoryMax={mib}M", "-p", "MemorySwapMax=0")
    scope = ("systemd-run", *user, "--scope", "--quiet", *limits)
    if shutil.which("systemd-run") and not subprocess.run((*scope, "true"), check=False).returncode:
        yield Limit("systemd-run", scope)
        return
    yield Limit("watch")


def _own(controller: str) -> str:
    """Return the path of this process in a hierarchy; raises OSError."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    raise OSError(f"no control group for {controller!r}")


def _v2(mib: int) -> Path:
    if not (ROOT / "cgroup.controllers").exists():
        raise OSError("no cgroup v2")
    # Beside this process's own: a group with processes cannot have limited children.
    folder = _made((ROOT / _own("")).parent)
    try:
        (folder / "memory.max").write_text(str(mib * 2**20), encoding="ascii")
        with suppress(OSError):  # a system without swap
            (folder / "memory.swap.max").write_text("0", encoding="ascii")
    except OSError:
        folder.rmdir()
        raise
    return folder


def _v1(mib: int) -> Path:
    folder = _made(ROOT / "memory" / _own("memory"))
    (folder / "memory.limit_in_bytes").write_text(str(mib * 2**20), encoding="ascii")
    return folder


def _made(parent: Path) -> Path:
    folder = parent / f"deeplab-test-{os.getpid()}"
    folder.mkdir()
    return folder


def _remove(folder: Path) -> None:
    """Remove a group, whose killed processes may take a moment to end."""
    for _ in range(100):
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)
    folder.rmdir()
