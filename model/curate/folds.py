"""Audit a split with networks that were not trained on the photos they audit (cross-validation).

The photos are divided into folds. For each fold a network is trained on the photos of the others,
with the recipe of a trained checkpoint, and audits the fold. So no network has learned the wrong
labels that it should find. Photos of one group (`photos.csv` of an import) stay in one fold.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from model import checkpoint
from model.checkpoint import Card, CheckpointError
from model.data.dataset import Dataset, DatasetError
from model.network.inference import served_map
from model.pydantic_errors import mistakes
from model.train.assembly import build
from model.train.distributed import World
from model.train.loss import PixelLoss
from model.train.recipe import Recipe, RecipeError
from model.train.run import STATE, Pace, RunFolder
from model.train.training import train

log = logging.getLogger("model.audit")

GROUPS = "photos.csv"  # of model.data import: name, split, group, origin
SAVE_EVERY = 100  # iterations


@dataclass(frozen=True)
class Fold:
    """One of the parts: photos to audit, and the others to train on."""

    judged: Dataset
    trained: Dataset


def recipe_of(card: Card, iterations: int | None = None) -> Recipe:
    """The recipe that a checkpoint was trained with; raises CheckpointError if it has none."""
    if not card.training:
        raise CheckpointError(
            "--folds trains by the checkpoint's own recipe, and its description has none: take a "
            "checkpoint of model.train"
        )
    known = {key: value for key, value in card.training.items() if key in Recipe.model_fields}
    if missing := sorted({*card.training} - {*known}):
        log.warning("left out of the recipe, because this version has no such keys: %s", missing)
    fields = known | {"model": card.model.model_dump()}
    # A validation would use photos outside of the folds; so the last weights are taken.
    fields |= {"validation_split": None, "validate_every": 0, "patience": 0}
    if iterations is not None:
        fields["iterations"] = iterations
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(mistakes(error, Recipe)) from None


def divide(dataset: Dataset, count: int, seed: int, root: Path | None = None) -> list[Fold]:
    """Divide a split into folds of about the same size, groups as a whole.

    Raises DatasetError if there are fewer groups than folds.
    """
    groups = groups_of(dataset, root)
    names = sorted(set(groups))
    if count > len(names):
        raise DatasetError(
            f"--folds {count}: {dataset.name} {dataset.split} has {len(names)} "
            f"{'photos' if len(names) == len(groups) else 'groups of photos'}: take fewer folds"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[place]: number % count for number, place in enumerate(order.tolist())}
    numbers = [fold_of[group] for group in groups]
    pairs = list(zip(numbers, dataset.pairs, strict=True))
    return [
        Fold(
            replace(dataset, pairs=tuple(pair for at, pair in pairs if at == number)),
            replace(dataset, pairs=tuple(pair for at, pair in pairs if at != number)),
        )
        for number in range(count)
    ]


def groups_of(dataset: Dataset, root: Path | None) -> list[str]:
    """The group of each photo, by the record of the import; without one each photo is a group."""
    record = None if root is None else root / GROUPS
    known = {}
    if record is not None and record.is_file():
        with record.open(encoding="utf-8", newline="") as stream:
            known = {row["name"]: row.get("group") or "" for row in csv.DictReader(stream)}
    return [known.get(pair.name) or f"photo {pair.name}" for pair in dataset.pairs]


def cost(config: Recipe, folds: Sequence[Fold], device: torch.device | str) -> str:
    """Describe the cost of all trainings and predictions, with their time on this machine."""
    iteration, photo = measured(config, device)
    photos = sum(len(fold.judged.pairs) for fold in folds)
    hours = (len(folds) * config.iterations * iteration + photos * photo) / 3600
    return (
        f"{len(folds)} trainings of {config.iterations} iterations of {config.batch_size} crops "
        f"({iteration:.2f} s each), then {photos} photos ({photo:.2f} s each): about "
        + (f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} minutes")
        + " on this machine"
    )


def measured(config: Recipe, device: torch.device | str) -> tuple[float, float]:
    """Seconds of an iteration's forward and backward pass, and of a photo, after a warm-up."""
    net = build(config.model_copy(update={"init": None})).to(device)
    net = net.to(memory_format=torch.channels_last).train()
    side, classes = config.augment.crop, config.model.num_classes
    count = config.batch_size // config.accumulate
    images = torch.rand(count, config.model.channels, side, side, device=device) * 255
    labels = torch.randint(0, classes, (count, side, side), dtype=torch.uint8, device=device)
    loss = PixelLoss()
    for _ in range(2):
        began = time.perf_counter()
        loss.sum(net(images), labels).backward()  # type: ignore[no-untyped-call]
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        iteration = (time.perf_counter() - began) * config.accumulate
    shape = (*config.model.crop_size, config.model.channels)
    began = time.perf_counter()
    served_map(net.eval(), np.zeros(shape, np.uint8))
    return iteration, time.perf_counter() - began


def trained(config: Recipe, fold: Fold, folder: Path, workers: int) -> Path:
    """The checkpoint of a fold: it is trained now, or its training is resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    pace = Pace(config.iterations, config.batch_size, SAVE_EVERY, max_skips=config.max_skips)
    return train(
        config,
        fold.trained,
        RunFolder(folder, World()),
        pace,
        resume=(folder / STATE).exists(),
        workers=workers,
    )


def warn_of_start(config: Recipe) -> None:
    """Warn if the weights to start from were trained on the photos to audit."""
    if config.init is None or config.init == "imagenet":
        return
    card = checkpoint.read_any_card(config.init)
    if isinstance(card, Card) and card.training.get("dataset") == config.dataset:
        log.warning(
            "init=%s was trained on %s itself: it may have memorised wrong labels; give --init "
            "imagenet or other weights",
            config.init,
            config.dataset,
        )
