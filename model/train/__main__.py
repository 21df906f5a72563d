"""Train DeepLabv3+ by the paper's protocol: `python -m model.train PRESET --data DIR`.

Section 4 of the paper: SGD with momentum, the poly policy, random scale, crop
and flip, cross-entropy on logits resized to the label's size, void ignored. A
run is a function of its recipe: every random choice follows from the seed and
the iteration, so a killed run continues with --resume as if nothing happened.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from model import arguments, memory
from model.checkpoint import CheckpointError
from model.data.dataset import Dataset, DatasetError, find
from model.data.loader import (
    Batch,
    Batches,
    CropDataset,
    Order,
    balanced_weights,
    loading,
    pixel_counts,
)
from model.train import distillation, distributed, preflight, recipe
from model.train.assembly import start
from model.train.board import TensorBoard
from model.train.distributed import World
from model.train.loss import PixelLoss, median_frequency_weights
from model.train.recipe import Recipe, RecipeError
from model.train.run import LOG_EVERY, Pace, Run, RunFolder, TrainingError, loop
from model.train.step import train_step
from model.train.validation import Validation, describe, keep, network

log = logging.getLogger("model.train")

SHOW_EVERY = 500  # iterations between overlays on the board, without validation
NAME = "model"  # of the finished checkpoint


def poly(iteration: int, config: Recipe) -> float:
    """Factor of the initial learning rate: (1 - i / n) ** power, after a linear warm-up."""
    warm = min(1.0, (iteration + 1) / (config.warmup + 1))
    return float(warm * (1 - iteration / config.iterations) ** config.power)


def samples(config: Recipe, dataset: Dataset, world: World) -> tuple[CropDataset, PixelLoss]:
    """The training stream and its loss; reads every mask where one of them is balanced."""
    counts = None
    if "balanced" in (config.sampling, config.class_weights):
        counts = world.from_main(lambda: pixel_counts(dataset))
    chances = None if config.sampling == "uniform" or counts is None else balanced_weights(counts)
    weights: Tensor | None = None
    if isinstance(config.class_weights, list):
        weights = torch.tensor(config.class_weights)
    elif config.class_weights == "balanced" and counts is not None:
        weights = median_frequency_weights(counts)
        log.info("class weights %s", [round(float(weight), 3) for weight in weights])
    order = Order(len(dataset.pairs), config.seed, chances)
    crops = CropDataset(dataset, order, config.augment, config.model.mean)
    return crops, PixelLoss(weights, config.hard_mining, config.lovasz)


def train(
    config: Recipe,
    dataset: Dataset,
    folder: RunFolder,
    pace: Pace,
    *,
    resume: bool,
    workers: int,
    validated_on: Dataset | None = None,
) -> Path:
    """Train by `config`, keeping state in `folder`; returns the checkpoint's path.

    `validated_on` is the split that the recipe's validation_split names.
    """
    world = folder.world
    run = start(config, world)
    if resume:
        folder.resume(run)
    teachers = distillation.load(config, world)
    crops, loss = samples(config, dataset, world)
    share = Batches(
        run.iteration,
        config.iterations,
        config.batch_size,
        rank=world.rank,
        ranks=world.size,
        parts=config.accumulate,
    )

    def weigh(batch: Batch) -> float:
        return loss.weight(batch.labels)

    def step(batch: Batch, weight: float) -> float:
        return train_step(
            run,
            batch,
            weight,
            factor=poly(run.iteration, config),
            loss=loss,
            config=config,
            world=world,
            teachers=teachers,
        )

    def after() -> bool:
        if run.iteration % (config.validate_every or SHOW_EVERY) == 0:
            show(run, config, validated_on or dataset, folder)
        return validation is not None and validation.after(run)

    validation = None if validated_on is None else Validation(validated_on, config, folder)
    if validation is None or not validation.is_over(run):
        with loading(crops, share, workers) as batches:
            loop(run, batches, pace, folder, weigh=weigh, step=step, after=after)
    return keep(run, folder, NAME, describe(config, dataset))


def show(run: Run, config: Recipe, dataset: Dataset, folder: RunFolder) -> None:
    """Put overlays of a few photos on the board, where there is one."""
    if folder.board is not None:
        net = network(run, config, folder.world)
        folder.board.overlays(run.iteration, net, dataset, describe(config, dataset))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m model.train efficientnet-lite0-voc --data DATA --out runs/light\n"
        "  python -m model.train efficientnet-lite0-voc --data DATA --resume runs/light\n"
        "  torchrun --nproc-per-node 8 -m model.train xception65-voc --data DATA --out runs/voc",
    )
    p.add_argument("recipe", nargs="?", help="a preset's name or a TOML file")
    p.add_argument("--list", action="store_true", help="list the presets and stop")
    p.add_argument("--data", type=Path, help="folder that holds the data set")
    p.add_argument("--out", type=Path, help="folder for state, log and checkpoint")
    p.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run kept in DIR")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    p.add_argument(
        "--workers", type=arguments.count, default=1, help="loader processes (default: 1)"
    )
    p.add_argument(
        "--save-every",
        type=arguments.positive,
        default=100,
        metavar="N",
        help="iterations per save (default: 100)",
    )
    p.add_argument(
        "--log-every",
        type=arguments.positive,
        default=LOG_EVERY,
        metavar="N",
        help=f"iterations per line (default: {LOG_EVERY})",
    )
    p.add_argument(
        "--tensorboard", action="store_true", help="also draw curves and overlays for TensorBoard"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.list:
        for name in recipe.presets():
            print(f"{name:34} {recipe.read(name, []).description}")
        return 0
    if args.recipe is None or args.data is None or (args.resume or args.out) is None:
        p.error("give a recipe, --data DIR and --out DIR (or --resume DIR)")
    if args.resume and args.out:
        p.error("--resume goes on in the folder it names: leave --out out")
    return command(lambda world: train_from(args, world))


def command(work: Callable[[World], Path]) -> int:
    """Do `work` as one of torchrun's processes, or alone; returns the exit code."""
    try:
        with distributed.join() as world:
            return _report(work, world)
    except distributed.DistributedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    except (RecipeError, DatasetError, TrainingError, CheckpointError, OSError) as error:
        if world.is_main:  # the others end with the same error
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, RecipeError | DatasetError) else 1
    log.info("wrote %s", path)
    return 0


def train_from(args: argparse.Namespace, world: World) -> Path:
    """Read recipe and data, then train."""
    config = recipe.read(args.recipe, args.overrides)
    preflight.check(config, world)
    dataset = find(config.dataset, args.data, config.split)
    preflight.check_classes(config, dataset)
    validated_on = None
    if config.validation_split is not None:
        validated_on = find(config.dataset, args.data, config.validation_split)
    directory: Path = args.resume or args.out
    preflight.check_folder(directory, resume=args.resume is not None)
    world.from_main(lambda: directory.mkdir(parents=True, exist_ok=True))
    preflight.log_rate(config)
    board = TensorBoard(directory) if args.tensorboard and world.is_main else None
    with closing(board) if board else nullcontext():
        return train(
            config,
            dataset,
            RunFolder(directory, world, board),
            Pace(
                config.iterations,
                config.batch_size,
                args.save_every,
                args.log_every,
                config.max_skips,
            ),
            resume=args.resume is not None,
            workers=args.workers,
            validated_on=validated_on,
        )


if __name__ == "__main__":
    memory.keep_freed_on_a_cpu()
    raise SystemExit(main())
