"""A store that is slow to read and records which processes read it.

A module of its own, so that the processes of a cluster can import it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem

READ_S = 0.3
READERS = "readers.log"  # beside the photos: a process id for every photo read


class SlowStore(LocalFileSystem):  # type: ignore[misc] # fsspec ships no types
    """The local disk as `slow:///path`."""

    protocol = "slow"

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """Open a file after a delay."""
        time.sleep(READ_S)
        with (Path(path).parent / READERS).open("a") as log:
            log.write(f"{os.getpid()}\n")
        return super().open(path, mode, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("slow://")))


def register() -> None:
    """Make `slow://` known in this process."""
    register_implementation("slow", SlowStore, clobber=True)
