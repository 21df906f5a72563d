"""Run a training command as one of torchrun's processes, or alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from model.checkpoint import CheckpointError
from model.data.dataset import DatasetError
from model.data.loader import LoaderError
from model.train import distributed
from model.train.distributed import World
from model.train.recipe import RecipeError
from model.train.run import StoppedAtOnce, TrainingError, kept

log = logging.getLogger("model.train")


def command(work: Callable[[World], Path], directory: Path) -> int:
    """Do `work` as one of torchrun's processes or as the only one; returns the exit code.

    `directory` is the run's folder, where a run that is cut off can go on.
    """
    try:
        with distributed.join() as world:
            return _report(work, world)
    except distributed.DistributedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedAtOnce:
        print(
            "stopped at once: --resume DIR in place of --out DIR continues from the last state",
            file=sys.stderr,
        )
        return 130  # as a shell reports SIGINT
    except RuntimeError as error:
        if not distributed.is_lost_peer(error):
            raise
        log.debug("the connection says: %s", error)
        print(
            "error: stopped, because another process of this run has ended, was killed or cannot "
            f"be reached; {kept(directory)}: continue with --resume {directory} in place of --out",
            file=sys.stderr,
        )
        return 1


def _report(work: Callable[[World], Path], world: World) -> int:
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.ERROR,
        format="%(asctime)s %(message)s",
        stream=sys.stderr,
    )
    try:
        path = work(world)
    except (
        RecipeError,
        DatasetError,
        TrainingError,
        LoaderError,
        CheckpointError,
        OSError,
    ) as error:
        if world.is_main:  # the others end with the same error
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, RecipeError | DatasetError) else 1
    log.info("wrote %s", path)
    return 0
