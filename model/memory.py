"""Keep freed memory in the process: a CPU training spends up to half its time without it.

The tensors of an iteration are larger than glibc's largest threshold (32 MiB) for
taking memory from its heap, so each of them would be mapped, zeroed page by page by
the kernel and unmapped again. The next iteration wants the same sizes, so the heap
is made to serve and keep them all: the process stays as large as it once was, and
fragments make it somewhat larger than what is in use at a time.
"""

from __future__ import annotations

import ctypes

import torch

# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed() -> bool:
    """Serve every allocation from the heap and never shrink it; False where malloc cannot."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def keep_freed_on_a_cpu() -> None:
    """`keep_freed` where there is no GPU: for a command, before it does anything else."""
    if not torch.cuda.is_available():
        keep_freed()
