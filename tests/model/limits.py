"""Make memory run out early, so that commands can be tested on a machine that has enough."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
LARGEST = 16_384  # pixels of a crop's side, as model/network/config.py has it: 3.2 GB a photo


@contextmanager
def memory_at_most(more: int = 1_500_000_000) -> Iterator[None]:
    """The kernel refuses this process more than so many bytes on top of those that it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
