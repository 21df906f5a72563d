"""Carry out the command line of `model.train`: read recipe and data, check them, train."""

from __future__ import annotations

import argparse
import logging
from contextlib import closing, nullcontext
from pathlib import Path

from model.data.dataset import Dataset, find
from model.data.pairs import expect_samples
from model.data.photo_list import find_photos
from model.train import preflight, recipe
from model.train.board import Board, TensorBoard
from model.train.command import command
from model.train.distributed import World
from model.train.lock import locked
from model.train.loggers import Boards, MLflow, WandB
from model.train.recipe import Recipe
from model.train.run import Pace, RunFolder
from model.train.training import Taught, train

log = logging.getLogger("model.train")


def command_line(args: argparse.Namespace, directory: Path) -> int:
    """Train as one of torchrun's processes or as the only one; returns the exit code."""
    return command(lambda world: train_from(args, directory, world), directory)


def opened_boards(args: argparse.Namespace, directory: Path, config: Recipe) -> Boards | None:
    """The boards that the command line asks for; raises RecipeError if one cannot be opened."""
    boards: list[Board] = []
    if args.tensorboard:
        boards.append(TensorBoard(directory))
    if args.mlflow:
        boards.append(MLflow(directory, config))
    if args.wandb:
        boards.append(WandB(directory, config))
    return Boards(boards) if boards else None


def train_from(args: argparse.Namespace, directory: Path, world: World) -> Path:
    """Read recipe and data, then train."""
    config = recipe.read(args.recipe, args.overrides)
    log.info("reading the data set below %s", args.data)
    preflight.check(config, world)
    dataset = find(config.dataset, args.data, config.split)
    preflight.check_classes(config, dataset)
    expect_samples(dataset, config.model.samples)
    preflight.check_taught(config, photos=args.photos, targets=args.targets)
    extra = Taught(find_photos(args.photos) if args.photos else (), args.targets)
    validated_on = None
    if config.validation_split is not None:
        validated_on = find(config.dataset, args.data, config.validation_split)
    log.info("looking at the masks of %d pairs", len(dataset.pairs))
    world.from_main(lambda: preflight.check_masks(dataset, validated_on))
    preflight.check_folder(directory, resume=args.resume is not None)
    with locked(directory, world):
        # Once more: a training that ended while this one waited has left a state.
        preflight.check_folder(directory, resume=args.resume is not None)
        return _train(args, directory, world, (config, dataset, validated_on, extra))


def _train(
    args: argparse.Namespace,
    directory: Path,
    world: World,
    inputs: tuple[Recipe, Dataset, Dataset | None, Taught],
) -> Path:
    """Open the boards and train in a folder that no other training uses."""
    config, dataset, validated_on, extra = inputs
    preflight.log_start(config, dataset, recipe.path_of(args.recipe))
    preflight.log_rate(config)
    preflight.check_norm_momentum(config)
    board = opened_boards(args, directory, config) if world.is_main else None
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
            extra=extra,
        )
