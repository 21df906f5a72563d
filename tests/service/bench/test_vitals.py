"""The figures from /proc match what the process did."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from service.bench import vitals


@pytest.mark.slow
def test_processor_time_is_that_of_the_process() -> None:
    before = vitals.read(os.getpid()).cpu_s
    used = time.process_time()
    while time.process_time() - used < 0.3:
        pass
    assert vitals.read(os.getpid()).cpu_s - before == pytest.approx(0.3, abs=0.1)


def test_memory_threads_and_files_are_seen(tmp_path: Path) -> None:
    before = vitals.read(os.getpid())
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    with (
        mmap.mmap(-1, 64 * vitals.MIB) as fresh,  # memory that was never used before
        (tmp_path / "file").open("w"),
    ):
        fresh.write(b"x" * len(fresh))
        during = vitals.read(os.getpid())
    over.set()
    thread.join()
    assert during.rss_mib - before.rss_mib > 60
    assert during.peak_rss_mib >= during.rss_mib
    assert during.threads == before.threads + 1
    assert during.open_files == before.open_files + 1


def test_a_process_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        vitals.read(2**22 + 1)
