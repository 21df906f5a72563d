"""Options of the training commands, and running one as one of torchrun's processes or alone."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from model import arguments
from model.checkpoint import CheckpointError
from model.data.dataset import DatasetError
from model.data.loader import LoaderError
from model.train import distributed
from model.train.distributed import World
from model.train.recipe import RecipeError
from model.train.run import LOG_EVERY, StoppedAtOnce, TrainingError

log = logging.getLogger("model.train")


def add_overrides(p: argparse.ArgumentParser, example: str, fields: str) -> None:
    """Add --set; `fields` says which class has the recipe's keys."""
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=f"change a key of the recipe, as in {example}; may be repeated. The keys are the "
        f"fields of {fields}",
    )


def add_run(p: argparse.ArgumentParser, result: str, *, workers: int, save_every: int) -> None:
    """Add the folder of a run, loader processes and intervals, with their defaults."""
    p.add_argument(
        "--out", type=Path, metavar="DIR", help=f"new folder for state, log and {result}"
    )
    p.add_argument("--resume", type=Path, metavar="DIR", help="continue the run kept in DIR")
    p.add_argument(
        "--workers",
        type=arguments.count,
        default=workers,
        metavar="N",
        help=f"processes that read photos (default: {workers})",
    )
    p.add_argument(
        "--save-every",
        type=arguments.positive,
        default=save_every,
        metavar="N",
        help=f"save the state every N iterations (default: {save_every})",
    )
    p.add_argument(
        "--log-every",
        type=arguments.positive,
        default=LOG_EVERY,
        metavar="N",
        help=f"log the loss every N iterations (default: {LOG_EVERY})",
    )


def run_folder(p: argparse.ArgumentParser, args: argparse.Namespace) -> Path:
    """Return the run's folder, from --out or --resume; exits on a usage error."""
    if (args.resume or args.out) is None:
        p.error("give --out DIR (or --resume DIR)")
    if args.resume and args.out:
        p.error("--resume continues in the folder it names: leave out --out")
    return Path(args.resume or args.out)


def command(work: Callable[[World], Path]) -> int:
    """Do `work` as one of torchrun's processes or as the only one; returns the exit code."""
    try:
        with distributed.join() as world:
            return _report(work, world)
    except distributed.DistributedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedAtOnce:
        print("stopped at once: --resume goes on from the last state", file=sys.stderr)
        return 130  # as a shell reports SIGINT
    except RuntimeError as error:
        if not distributed.is_lost_peer(error):
            raise
        print(f"stopped, because another process ended first: {error}", file=sys.stderr)
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
