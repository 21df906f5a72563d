"""Read photos from a disk: only regular files, and only up to a size limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

# Larger than any photo: the service takes 32 MiB unless told otherwise, and --max-side shrinks
# larger ones.
MOST_BYTES = 512 << 20


def read_photo(path: Path) -> bytes:
    """Read a regular file; raises OSError for a FIFO, a device, or more than MOST_BYTES."""
    # Without O_NONBLOCK, opening a FIFO that nobody writes to waits for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, flags)
    except ValueError as error:  # a name with a zero byte in it
        raise OSError(f"{path!r}: {error}") from error
    try:
        return _read(number, path)
    finally:
        os.close(number)


def _read(number: int, path: Path) -> bytes:
    info = os.fstat(number)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(f"{path}: not a regular file")
    check_size(info.st_size, path)
    with open(number, "rb", closefd=False) as file:
        content = file.read(info.st_size + 1)
        if len(content) > info.st_size:  # it has grown, or reports no size, like files in /proc
            content += file.read(MOST_BYTES)
    check_size(len(content), path)
    return content


def check_size(size: int, name: object) -> None:
    """Raise OSError if there are more bytes than any photo has."""
    if size > MOST_BYTES:
        raise OSError(f"{name}: larger than any photo (more than {MOST_BYTES >> 20} MiB)")
