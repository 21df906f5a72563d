"""Lock a run's folder for one training; the system drops the lock when that process ends."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.train.distributed import World
from model.train.run import TrainingError

log = logging.getLogger("model.train")

# A killed training's loader processes hold its lock until they notice, some seconds later.
WAIT_S = 30.0
POLL_S = 0.2


@contextmanager
def locked(directory: Path, world: World) -> Iterator[None]:
    """Make the run's folder and keep other trainings out of it.

    Raises TrainingError in all processes if another training holds the folder. On a
    file system without locks, nothing is locked.
    """
    held = world.from_main(lambda: _take(directory))
    try:
        yield
    finally:
        if world.is_main and held is not None:
            os.close(held)


def _take(directory: Path) -> int | None:
    """Return the descriptor that holds the lock; None on file systems without locks."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    end = time.monotonic() + WAIT_S
    waiting = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                raise TrainingError(
                    f"{directory}: another training is running in this folder; stop it, or give "
                    "another folder"
                ) from None
        except OSError:  # not on this file system
            os.close(descriptor)
            return None
        if not waiting:
            log.warning("%s is held by another training: waiting %d s", directory, WAIT_S)
            waiting = True
        time.sleep(POLL_S)
