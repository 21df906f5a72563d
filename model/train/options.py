"""Options of the training commands; loads no PyTorch, which takes seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from model import arguments
from model.train.recipe import LOG_EVERY


def add_overrides(
    p: argparse.ArgumentParser, example: str, fields: str, *, recipe: str = "the recipe"
) -> None:
    """Add --set; `fields` says which class has the recipe's keys."""
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=f"change a key of {recipe}, as in {example}; may be repeated. The keys are the "
        f"fields of {fields}",
    )


def add_run(p: argparse.ArgumentParser, result: str, *, workers: int, save_every: int) -> None:
    """Add the folder of a run, loader processes and intervals, with their defaults."""
    p.add_argument(
        "--out", type=Path, metavar="DIR", help=f"new folder for state, log and {result}"
    )
    p.add_argument("--resume", type=Path, metavar="DIR", help="continue the run kept in DIR")
    add_workers(p, workers)
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


def add_workers(p: argparse.ArgumentParser, default: int) -> None:
    """Add --workers, the processes that read and augment photos."""
    alone = ", the command itself reads them" if default == 0 else ""
    p.add_argument(
        "--workers",
        type=arguments.count,
        default=default,
        metavar="N",
        help=f"processes that read photos (default: {default}{alone})",
    )


def run_folder(p: argparse.ArgumentParser, args: argparse.Namespace) -> Path:
    """Return the run's folder, from --out or --resume; exits on a usage error."""
    if (args.resume or args.out) is None:
        p.error("give --out DIR (or --resume DIR)")
    if args.resume and args.out:
        p.error("--resume continues in the folder it names: leave out --out")
    return Path(args.resume or args.out)
