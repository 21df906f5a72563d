"""Read the resource usage of a process from Linux's /proc, see proc(5)."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Vitals:
    """The resource usage of a process at one moment."""

    cpu_s: float  # user and system time of all threads
    rss_mib: float
    peak_rss_mib: float
    threads: int
    open_files: int


def read(pid: int) -> Vitals:
    """Read the usage of a process; raises OSError if it has ended."""
    folder = Path("/proc") / str(pid)
    # The command name in parentheses may contain spaces and parentheses.
    stat = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    lines = (folder / "status").read_text(encoding="utf-8").splitlines()
    status = {
        key: value.split()[0]
        for key, _, value in (line.partition(":") for line in lines)
        if value.strip()
    }
    return Vitals(
        cpu_s=(int(stat[11]) + int(stat[12])) / TICKS_PER_S,
        rss_mib=int(status["VmRSS"]) / 1024,
        peak_rss_mib=int(status["VmHWM"]) / 1024,
        threads=int(status["Threads"]),
        open_files=len(list((folder / "fd").iterdir())),
    )


def descendants(pid: int) -> list[int]:
    """Return the running processes that a process has started, and their children."""
    found = []
    with suppress(OSError):  # it has ended
        for thread in (Path("/proc") / str(pid) / "task").iterdir():
            for child in map(int, (thread / "children").read_text(encoding="ascii").split()):
                found += [child, *descendants(child)]
    return found


def tree_cpu_s(pid: int) -> float:
    """Return the processor time of a process and its descendants; OSError if it has ended."""
    total = read(pid).cpu_s
    for child in descendants(pid):
        with suppress(OSError):
            total += read(child).cpu_s
    return total


def tree_mib(pid: int) -> float:
    """Return the memory of a process and its descendants; shared pages count once."""
    total = 0.0
    for each in (pid, *descendants(pid)):
        with suppress(OSError):  # it has ended
            total += _share_mib(each)
    return total


def _share_mib(pid: int) -> float:
    """Return the proportional share of a process: pages divided by their number of users."""
    lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024
