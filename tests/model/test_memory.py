"""With glibc's malloc, freed memory stays in the process."""

import subprocess
import sys

import pytest

from model import memory

pytestmark = pytest.mark.slow

# Prints the pages that the kernel gives for the last ten of forty equal tensors of 64 MiB.
PROGRAM = """
import resource
import torch
from model import memory

if {keep} and not memory.keep_freed():
    raise SystemExit("no mallopt")
for round in range(40):
    if round == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(*, keep: bool) -> int:
    """Return the page faults of allocating memory that was just freed."""
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "no mallopt" in done.stderr:
        pytest.skip("this malloc is not glibc's")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_reused() -> None:
    assert pages(keep=True) <= pages(keep=False) / 4


def test_a_command_runs_in_a_process_that_keeps_freed_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First the memory, then the command, whose exit status is returned."""
    calls: list[str] = []
    monkeypatch.setattr(memory, "keep_freed_on_a_cpu", lambda: calls.append("memory"))

    def main() -> int:
        calls.append("command")
        return 3

    script = memory.keeping_freed(main)
    assert calls == []
    assert script() == 3
    assert calls == ["memory", "command"]
