"""Share the work on a large picture between two threads.

Pillow and NumPy release Python's lock while they work on pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")

LARGE = 4_000_000  # pixels: work on smaller pictures takes a few milliseconds


def share(work: Callable[[Item], None], items: Iterable[Item], pixels: int) -> None:
    """Call `work` for every item; for a picture of LARGE `pixels` or more, in two threads.

    An error of `work` is raised when both threads have ended.
    """
    waiting = SimpleQueue[Item]()
    for item in items:
        waiting.put(item)
    if pixels < LARGE:
        _work_on(work, waiting)
        return
    with ThreadPoolExecutor(1) as pool:
        other = _submitted(pool, partial(_work_on, work, waiting))
        _work_on(work, waiting)
        if other is not None:
            other.result()


def _submitted(pool: ThreadPoolExecutor, call: Callable[[], None]) -> Future[None] | None:
    """Submit a call; return None if no thread can be started, so that the caller does it all."""
    try:
        return pool.submit(call)
    except RuntimeError:
        return None


def _work_on(work: Callable[[Item], None], waiting: SimpleQueue[Item]) -> None:
    """Work on items until none is left."""
    while True:
        try:
            item = waiting.get_nowait()
        except Empty:
            return
        work(item)
