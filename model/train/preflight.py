"""Check a recipe before training: refuse known mistakes, warn of likely ones."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from model.data.dataset import Dataset, DatasetError
from model.data.pairs import why_no_ids
from model.data.photo import opened, upright_size
from model.data.survey import TRAINING_MASKS, expect_classes, survey
from model.train.assembly import FASTEST_NORM
from model.train.distributed import World
from model.train.recipe import BaseRecipe, Recipe, RecipeError
from model.train.run import STATE, kept

log = logging.getLogger("model.train")

REMEMBERED = 0.05  # share of batch norm's first statistics that is too much at the end
MIN_NORM_BATCH = 8  # images; fewer make batch-norm fine-tuning lose accuracy
POOLING_PARTS = {"aspp", "aspp.pooling"}  # modules around the image pooling's batch norm


def check(config: Recipe, world: World | None = None) -> None:
    """Refuse recipes that are known to fail; warn of those that probably will.

    Raises RecipeError if the crop does not align with the output stride, if the batch
    cannot be divided between processes, if the batch norm of the image pooling would
    see a single value, and for fp16 without CUDA.
    """
    world = world or World()
    crop, stride = config.augment.crop, config.model.output_stride
    if (crop - 1) % stride:
        below = (crop - 1) // stride * stride + 1
        raise RecipeError(
            f"augment.crop={crop}: maps align at output stride {stride} only when the crop is a "
            f"multiple of it plus one; take {below} or {below + stride}"
        )
    check_shares(config, world)
    if not config.freeze_batch_norm:
        _check_norm_batch(config)


def check_shares(config: BaseRecipe, world: World) -> None:
    """Raise RecipeError if the batch cannot be divided, and for fp16 without CUDA."""
    shares = world.size * config.accumulate
    if config.batch_size % shares:
        raise RecipeError(
            f"batch_size={config.batch_size} does not divide into {world.size} processes with "
            f"accumulate={config.accumulate} micro-batches each; take a multiple of {shares}"
        )
    if config.precision == "fp16" and world.device.type != "cuda":
        raise RecipeError(
            "precision='fp16' needs a CUDA device; on the CPU take precision=bf16 or fp32"
        )


def _check_norm_batch(config: Recipe) -> None:
    """Batch norm sees a micro-batch of all processes together."""
    seen = config.batch_size // config.accumulate
    says = f"batch_size={config.batch_size}"
    if config.accumulate > 1:
        says += f" with accumulate={config.accumulate}"
    trained = not POOLING_PARTS.intersection(config.frozen)
    if seen == 1 and config.model.image_pooling and trained:
        raise RecipeError(
            f"{says}: the batch norm of the image pooling has one value per channel and "
            "cannot be trained; take batch_size=2 or more, freeze_batch_norm=true, "
            "model.image_pooling=false or frozen=['aspp.pooling']"
        )
    if seen < MIN_NORM_BATCH:
        log.warning(
            "%s: batch norm is trained on batches of %d; below %d its statistics are noisy: "
            "raise batch_size, or set freeze_batch_norm=true",
            says,
            seen,
            MIN_NORM_BATCH,
        )


def check_classes(config: Recipe, dataset: Dataset) -> None:
    """Raise RecipeError if the classifier does not fit the data set's classes."""
    if config.model.num_classes != len(dataset.classes):
        raise RecipeError(
            f"model.num_classes={config.model.num_classes}, dataset {dataset.name!r} has "
            f"{len(dataset.classes)} classes: set model.num_classes={len(dataset.classes)}"
        )


def check_masks(dataset: Dataset, validated_on: Dataset | None) -> None:
    """Warn of mask values that are no class; raises DatasetError if nothing can be learnt."""
    for split in filter(None, (dataset, validated_on)):
        expect_classes(survey(split, TRAINING_MASKS), skips_damage=split is dataset)
    if validated_on is not None:
        check_validation_pairs(validated_on)


def check_validation_pairs(dataset: Dataset) -> None:
    """Raise DatasetError for a pair that would end the first validation, hours from now.

    Reads headers: both files are there, are pictures and have one size, and the mask holds ids.
    """
    for pair in dataset.pairs:
        try:
            with opened(Path(str(pair.mask))) as mask:
                size, found = upright_size(pair.image, dataset.samples), mask.size
                why = why_no_ids(mask.format, mask.mode)
            problem = f"{pair.mask} {why}" if why else ""
            if size != found and not why:
                problem = f"{pair.image} is {size[0]} x {size[1]}, its mask {pair.mask} "
                problem += f"{found[0]} x {found[1]}"
        except OSError as error:
            problem = str(error)
        if problem:
            raise DatasetError(
                f"validation_split={dataset.split!r}: {problem}; "
                "python -m model.data check names all"
            )


def check_taught(config: Recipe, *, photos: Path | None, targets: Path | None) -> None:
    """Raise RecipeError where photos without labels, teachers and the options do not fit."""
    if config.unlabelled and photos is None:
        raise RecipeError(
            f"unlabelled={config.unlabelled}: give the photos without labels by --photos DIR, "
            "or set unlabelled=0"
        )
    if photos is not None and not config.unlabelled:
        raise RecipeError(
            f"--photos {photos}: the recipe takes none of them; set unlabelled, their share of "
            "the samples"
        )
    if targets is not None and not config.teachers:
        raise RecipeError(f"--targets {targets}: the recipe names no teachers")
    for key, value in (("augment.mixup", config.augment.mixup), ("hints", config.hints)):
        if targets is not None and value:
            raise RecipeError(
                f"--targets {targets}: the answers for whole photos are not enough for "
                f"{key}={value}, the teachers must see each crop; leave one of the two out"
            )


def check_folder(directory: Path, *, resume: bool) -> None:
    """Raise RecipeError if a new run would replace another, or if there is none to resume."""
    if resume and not directory.is_dir():
        raise RecipeError(f"--resume {directory}: there is no such folder; --out starts a new run")
    if (directory / STATE).exists() and not resume:
        raise RecipeError(
            f"{directory} holds a run, {kept(directory)}: "
            f"continue it with --resume {directory}, or choose another --out"
        )


def check_norm_momentum(config: Recipe) -> None:
    """Warn where batch norm's statistics at the end would still be those of the start."""
    momentum = config.batch_norm_momentum
    if momentum is None or config.freeze_batch_norm:
        return
    updates = config.iterations * config.accumulate
    left = (1 - momentum) ** updates
    if left > REMEMBERED:
        log.warning(
            "batch_norm_momentum=%g: after %d iterations %.0f %% of batch norm's statistics are "
            "still those of the start, and the network is evaluated with them: %s",
            momentum,
            config.iterations,
            100 * left,
            _norm_advice(momentum, updates, config.accumulate),
        )


def _norm_advice(momentum: float, updates: int, accumulate: int) -> str:
    """A momentum that fits the run's updates or, where none does, a longer run."""
    faster = min(FASTEST_NORM, 9 / updates)  # 9: see assembly.norm_momentum
    if (1 - faster) ** updates <= REMEMBERED:
        return f"leave the key out, or take {faster:.2g}"
    enough = math.log(REMEMBERED) / math.log(1 - max(momentum, faster))
    longer = f"more iterations, at least {math.ceil(enough / accumulate)}"
    return f"take {longer}" if momentum >= faster else f"take {faster:.2g} and {longer}"


# Times that each photo is seen: with fewer the network learns little, with more it overfits.
VIEWS = (10, 300)
VIEWS_TO_START_WITH = 50


def fitting_iterations(photos: int, batch_size: int) -> int:
    """Iterations that show each photo some 50 times, at least 100: to start with."""
    return max(100, round(VIEWS_TO_START_WITH * photos / batch_size))


def log_start(config: Recipe, dataset: Dataset, source: Path) -> None:
    """Log the network and the data set, and warn if the length does not fit the data."""
    photos = len(dataset.pairs)
    views = config.iterations * config.batch_size / photos
    log.info(
        "recipe %s: %d photos of %s %s, %d iterations of %d crops of %d: %.3g views per photo",
        source,
        photos,
        dataset.name,
        dataset.split,
        config.iterations,
        config.batch_size,
        config.augment.crop,
        views,
    )
    if not VIEWS[0] <= views <= VIEWS[1]:
        log.warning(
            "each photo is seen %.3g times; about %d times is a good start: --set iterations=%d",
            views,
            VIEWS_TO_START_WITH,
            fitting_iterations(photos, config.batch_size),
        )


def log_rate(config: Recipe) -> None:
    """Log the learning rate that follows from the batch size."""
    if config.reference_batch is None:
        log.info("learning rate %.4g at batch %d", config.rate, config.batch_size)
    else:
        log.info(
            "learning rate %.4g = %.4g * batch %d / %d",
            config.rate,
            config.learning_rate,
            config.batch_size,
            config.reference_batch,
        )
