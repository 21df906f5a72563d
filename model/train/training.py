"""Train a network by a recipe.

Section 4 of the paper: SGD with momentum, the poly policy, random scale, crop
and flip, cross-entropy on logits resized to the labels' size, void ignored.
Every random choice follows from the recipe's seed and the iteration, so a killed
run that is resumed gives the result of an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.data.dataset import UNLABELLED, Dataset
from model.data.loader import (
    Batch,
    Batches,
    CropDataset,
    MixedCrops,
    Order,
    Samples,
    UnlabelledPhotos,
    balanced_weights,
    loading,
    photos,
    pixel_counts,
)
from model.train import distillation, targets
from model.train.assembly import start
from model.train.distillation import Teachers
from model.train.distributed import World
from model.train.loss import PixelLoss, median_frequency_weights
from model.train.recipe import Recipe
from model.train.run import Pace, Run, RunFolder, loop
from model.train.step import labelled, train_step
from model.train.targets import Targets
from model.train.validation import Validation, describe, keep, network

log = logging.getLogger("model.train")

SHOW_EVERY = 500  # iterations between overlays on the board, without validation
NAME = "model"  # of the finished checkpoint


def rate_factor(iteration: int, config: Recipe) -> float:
    """Factor of the initial learning rate, after a linear warm-up.

    poly: (1 - i / n) ** power. cosine: half a wave from 1 to 0 (Loshchilov and Hutter 2017,
    arXiv:1608.03983, without restarts).
    """
    warm = min(1.0, (iteration + 1) / (config.warmup + 1))
    left = 1 - iteration / config.iterations
    if config.schedule == "cosine":
        return warm * (1 - math.cos(math.pi * left)) / 2
    return float(warm * left**config.power)


@dataclass(frozen=True)
class Taught:
    """The inputs of a training with teachers, besides the data set."""

    photos: tuple[Path, ...] = ()  # without labels
    targets: Path | None = None  # where the teachers' answers for whole photos are kept


def samples(
    config: Recipe,
    dataset: Dataset,
    world: World,
    unlabelled: tuple[Path, ...] = (),
    kept: Targets | None = None,
) -> tuple[Samples, PixelLoss]:
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
    crops: Samples = CropDataset(dataset, order, config.augment, config.model.mean, kept)
    if unlabelled:
        crops = MixedCrops(crops, taught(config, unlabelled, kept, world), config.unlabelled)
    return crops, PixelLoss(
        weights, config.hard_mining, config.lovasz, dice=config.dice, focal=config.focal
    )


def taught(
    config: Recipe, paths: tuple[Path, ...], kept: Targets | None, world: World
) -> CropDataset:
    """The stream of photos without labels.

    If sampling is balanced and the teachers' answers are stored, their classes balance it.
    """
    chances = None
    if config.sampling == "balanced" and kept is not None:
        chances = balanced_weights(world.from_main(lambda: kept.pixels(paths)))
    order = Order(len(paths), config.seed + 1, chances)
    source = UnlabelledPhotos(paths, config.model.samples)
    return CropDataset(source, order, config.augment, config.model.mean, kept)


def answers(
    config: Recipe, dataset: Dataset, extra: Taught, teachers: Teachers | None, world: World
) -> Targets | None:
    """The teachers' answers for all photos, where they are to be kept: computed if missing."""
    if extra.targets is None or teachers is None:
        return None
    root = extra.targets
    found = world.from_main(lambda: targets.of(config, root))
    targets.prepare(found, teachers, (*photos(dataset), *extra.photos), config, world)
    return found


def train(
    config: Recipe,
    dataset: Dataset,
    folder: RunFolder,
    pace: Pace,
    *,
    resume: bool,
    workers: int,
    validated_on: Dataset | None = None,
    extra: Taught = Taught(),
) -> Path:
    """Train by `config`, keeping state in `folder`; returns the checkpoint's path.

    `validated_on` is the split that the recipe's validation_split names.
    """
    world = folder.world
    log.info("building the network")
    teachers = distillation.load(config, world)
    run = start(config, world, teachers)
    run.photos = len(dataset.pairs)
    if resume:
        folder.resume(run)
        _warn_of_nothing_left(run, config)
    kept = answers(config, dataset, extra, teachers, world)
    if teachers is not None and kept is not None:
        teachers = teachers.dismissed()
    crops, loss = samples(config, dataset, world, extra.photos, kept)
    share = _share(run, config, world)

    def weigh(batch: Batch) -> float:
        return weight(loss, judged(batch, config).labels)

    def step(batch: Batch, total: float) -> float:
        return train_step(
            run,
            judged(batch, config),
            total,
            factor=rate_factor(run.iteration, config),
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
    if validation is not None and validation.is_owed(run):
        folder.forget_validation(run.iteration)  # it may have been stopped after it wrote its line
        validation.after(run)
        folder.save(run)
    if validation is None or not validation.is_over(run):
        if run.iteration < config.iterations:
            log.info("reading the first batch")
        with loading(crops, share, workers) as batches:
            loop(run, batches, pace, folder, weigh=weigh, step=step, after=after)
    return keep(run, folder, NAME, describe(config, dataset))


def _share(run: Run, config: Recipe, world: World) -> Batches:
    """The batches that are left to this process."""
    return Batches(
        run.iteration,
        config.iterations,
        config.batch_size,
        rank=world.rank,
        ranks=world.size,
        parts=config.accumulate,
    )


def _warn_of_nothing_left(run: Run, config: Recipe) -> None:
    """Warn if a resumed run has already done all its iterations."""
    if run.iteration >= config.iterations:
        log.warning(
            "iterations=%d, and %d are done: nothing is left to train; set more "
            "iterations for a longer run",
            config.iterations,
            run.iteration,
        )


def judged(batch: Batch, config: Recipe) -> Batch:
    """The batch with the labels that the loss is taken at: all, or one for each logit."""
    if config.loss_at == "labels":
        return batch
    stride = config.model.logits_stride
    return batch._replace(labels=batch.labels[:, ::stride, ::stride].contiguous())


def weight(loss: PixelLoss, labels: Tensor) -> float:
    """The divisor of a batch's loss. Pixels that only teachers label count like any other."""
    return loss.weight(labelled(labels)) + float((labels == UNLABELLED).sum())


def show(run: Run, config: Recipe, dataset: Dataset, folder: RunFolder) -> None:
    """Write overlays of a few photos to TensorBoard, if the run uses it."""
    if folder.board is not None:
        net = network(run, config, folder.world)
        folder.board.overlays(run.iteration, net, dataset, describe(config, dataset))
