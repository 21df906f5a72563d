"""Train a network by a recipe.

Section 4 of the paper: SGD with momentum, the poly policy, random scale, crop
and flip, cross-entropy on logits resized to the labels' size, void ignored.
Every random choice follows from the recipe's seed and the iteration, so a killed
run that is resumed gives the result of an uninterrupted one.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from model.data.dataset import Dataset
from model.data.loader import (
    Batch,
    Batches,
    CropDataset,
    Order,
    balanced_weights,
    loading,
    pixel_counts,
)
from model.train import distillation
from model.train.assembly import start
from model.train.distributed import World
from model.train.loss import PixelLoss, median_frequency_weights
from model.train.recipe import Recipe
from model.train.run import Pace, Run, RunFolder, loop
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
    """The training samples and the loss; balanced sampling or weights read every mask first."""
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
    """Write overlays of a few photos to TensorBoard, if the run uses it."""
    if folder.board is not None:
        net = network(run, config, folder.world)
        folder.board.overlays(run.iteration, net, dataset, describe(config, dataset))
