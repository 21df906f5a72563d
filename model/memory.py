"""Keep freed memory in the process; without this a CPU training can take twice as long.

The tensors of an iteration are larger than the largest size (32 MiB) that glibc allocates
from its heap. So each would be mapped, zeroed page by page by the kernel, and unmapped
again, only for the next iteration to ask for the same sizes. This module makes the heap
serve them all and keep them. The process never shrinks, and fragmentation makes it
somewhat larger than what is in use.

It also detects that memory has run out, so that a command can say what to change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


# In the RuntimeErrors of PyTorch's allocator for the host, and of ONNX Runtime's.
SHORTAGES = ("can't allocate memory", "Failed to allocate memory", "bad_alloc")


class ShortageError(RuntimeError):
    """Memory ran out; the message says what to change."""


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Raise ShortageError with `advice` if memory runs out, on a GPU or on the host."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        says = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            words in says for words in SHORTAGES
        ):
            raise
        first = says.strip().splitlines()[0] if says.strip() else "no memory"
        raise ShortageError(f"out of memory: {advice} ({first[:200]})") from error


def keep_freed() -> bool:
    """Serve every allocation from the heap and never shrink it; False where malloc cannot."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def keep_freed_on_a_cpu() -> None:
    """Call `keep_freed` where there is no GPU; commands do so before anything else."""
    if not torch.cuda.is_available():
        keep_freed()


def keeping_freed(main: Callable[[], int]) -> Callable[[], int]:
    """Return a command that runs `main` in a process that keeps freed memory on a CPU."""

    def script() -> int:
        keep_freed_on_a_cpu()
        return main()

    return script
