"""Settings of the C library's heap, so that a model that is replaced leaves no memory behind.

Only glibc has them; with other C libraries these functions do nothing.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_MMAP_THRESHOLD = -3  # of malloc.h
# Most blocks of a session are smaller or much larger. The images of a request are smaller.
LARGE_BLOCK = 4 * 1024 * 1024  # bytes


def keep_large_blocks_apart() -> None:
    """Take blocks of 4 MiB and more from the system, and give each back when it is freed.

    By default glibc raises this limit when it frees a large block, up to 32 MiB. Weights and
    activations then share the heap with small blocks, which keep freed ones from being given back:
    a service grew by 260 MB over 80 reloads under load.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def trim() -> None:
    """Return freed memory to the system, because glibc keeps it for its threads."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
