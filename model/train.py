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
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model import distributed, pretrained, recipe, recompute
from model.board import TensorBoard
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
from model.deeplab import DeepLabV3Plus
from model.distributed import World
from model.layers import batch_norms
from model.loss import PixelLoss, median_frequency_weights
from model.recipe import InitPart, Recipe, RecipeError
from model.run import LOG_EVERY, STATE, Pace, Run, RunFolder, TrainingError, kept, loop
from model.step import train_step
from model.validation import Validation, describe, keep, network

log = logging.getLogger("model.train")

SHOW_EVERY = 500  # iterations between overlays on the board, without validation
COMPILER = "inductor"  # of torch.compile
NAME = "model"  # of the finished checkpoint
MIN_NORM_BATCH = 8  # images; fewer make batch-norm fine-tuning lose accuracy


class Sharing(Protocol):
    """What a recipe says about the division of a batch."""

    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def precision(self) -> str: ...


def poly(iteration: int, config: Recipe) -> float:
    """Factor of the initial learning rate: (1 - i / n) ** power, after a linear warm-up."""
    warm = min(1.0, (iteration + 1) / (config.warmup + 1))
    return float(warm * (1 - iteration / config.iterations) ** config.power)


def build(config: Recipe) -> DeepLabV3Plus:
    """The network with its initial weights."""
    torch.manual_seed(config.seed)
    net = DeepLabV3Plus(config.model)
    if config.init is not None:
        initialise(net, config.init, config.init_part)
    if config.batch_norm_momentum is not None:
        for norm in batch_norms(net):
            norm.momentum = config.batch_norm_momentum
    return net


def initialise(net: DeepLabV3Plus, init: str, part: InitPart) -> None:
    """Load the weights to start from; raises CheckpointError saying how to get them."""
    try:
        pretrained.initialise(net, init, part)
    except CheckpointError as error:
        raise CheckpointError(
            f"init={init!r}: {error}; train or convert these weights first (docs/training.md), "
            "or name others with --set init=..."
        ) from error


def parameter_groups(net: DeepLabV3Plus, config: Recipe) -> list[dict[str, Any]]:
    """Backbone and head, each with and without weight decay.

    As in the reference, batch norm, biases and depthwise kernels are not decayed.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim == 4 and parameter.shape[1] > 1
        groups.setdefault((name.startswith("backbone."), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "rate": config.rate * (1.0 if backbone else config.head_multiplier),
        }
        for (backbone, decayed), parameters in groups.items()
    ]


def freeze(net: nn.Module, names: list[str]) -> None:
    """Keep weights and batch-norm statistics of the modules named, and of all in them.

    Raises RecipeError when a name is not the name of a module.
    """
    modules = dict(net.named_modules())
    for part in names:
        if part not in modules:
            raise RecipeError(
                f"frozen: the network has no part {part!r}; it has "
                + ", ".join(name for name in modules if 0 < name.count(".") + 1 <= 2)
            )
        modules[part].requires_grad_(False)
        for norm in batch_norms(modules[part]):
            norm.eval()


def preflight(config: Recipe, world: World | None = None) -> None:
    """Refuse what is known to waste a training; warn of what is likely to.

    Raises RecipeError when the crop does not align with the output stride, when
    the batch cannot be shared out, when the batch norm behind the image pooling
    would see a single value, and for fp16 without CUDA.
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


def check_shares(config: Sharing, world: World) -> None:
    """Raise RecipeError where the batch cannot be shared out, and for fp16 without CUDA."""
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
    if seen == 1 and config.model.image_pooling:
        raise RecipeError(
            f"{says}: the batch norm of the image pooling has one value per channel and "
            "cannot be trained; take batch_size=2 or more, freeze_batch_norm=true, or "
            "model.image_pooling=false"
        )
    if seen < MIN_NORM_BATCH:
        log.warning(
            "%s: batch norm is trained on batches of %d; below %d its statistics are noisy: "
            "raise batch_size, or set freeze_batch_norm=true",
            says,
            seen,
            MIN_NORM_BATCH,
        )


def keep_depthwise_in_fp32(net: nn.Module) -> None:
    """Take depthwise convolutions out of CPU autocast.

    oneDNN's bfloat16 gradient of a depthwise convolution is up to four times
    slower than its float32 one, while everything else gains.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = _in_fp32(module.forward)  # type: ignore[method-assign]


def _in_fp32(forward: Any) -> Any:
    def wrapped(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float()).to(x.dtype)  # type: ignore[no-any-return]

    return wrapped


def start(config: Recipe, world: World) -> Run:
    """A run at iteration 0."""
    net = build(config).to(world.device).train()
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if config.precision == "bf16" and world.device.type == "cpu":
        keep_depthwise_in_fp32(net)
    distributed.synchronise_batch_norm(net, world)
    if config.freeze_batch_norm:
        for norm in batch_norms(net):
            norm.eval()
    freeze(net, config.frozen)
    if config.checkpointing:
        recompute.units(net.backbone)
    if config.compile:
        net.compile(backend=COMPILER)  # in place: the names in the state dict stay
    optimizer = torch.optim.SGD(
        parameter_groups(net, config),
        lr=config.rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    average = {k: v.clone() for k, v in net.state_dict().items()} if config.ema_decay else None
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    return Run(net, optimizer, world.wrap(net), average, scaler)


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
    return crops, PixelLoss(weights, config.hard_mining)


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
        log.info("resumed at iteration %d", run.iteration)
    crops, loss = samples(config, dataset, world)
    share = Batches(run.iteration, config.iterations, config.batch_size, world.rank, world.size)

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
        epilog="example: python -m model.train efficientnet-lite0-voc --data DATA --out runs/light",
    )
    p.add_argument("recipe", nargs="?", help="a preset's name or a TOML file")
    p.add_argument("--list", action="store_true", help="list the presets and stop")
    p.add_argument("--data", type=Path, help="folder that holds the data set")
    p.add_argument("--out", type=Path, help="folder for state, log and checkpoint")
    p.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run kept in DIR")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    p.add_argument("--workers", type=int, default=1, help="loader processes (default: 1)")
    p.add_argument("--save-every", type=int, default=100, metavar="N", help="iterations per save")
    p.add_argument(
        "--log-every", type=int, default=LOG_EVERY, metavar="N", help="iterations per line"
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
    preflight(config, world)
    dataset = find(config.dataset, args.data, config.split)
    check_classes(config, dataset)
    validated_on = None
    if config.validation_split is not None:
        validated_on = find(config.dataset, args.data, config.validation_split)
    directory: Path = args.resume or args.out
    refuse_to_overwrite(directory, resume=args.resume is not None)
    world.from_main(lambda: directory.mkdir(parents=True, exist_ok=True))
    log_rate(config)
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


def check_classes(config: Recipe, dataset: Dataset) -> None:
    """Raise RecipeError when the classifier does not fit the data set's classes."""
    if config.model.num_classes != len(dataset.classes):
        raise RecipeError(
            f"model.num_classes={config.model.num_classes}, dataset {dataset.name!r} has "
            f"{len(dataset.classes)} classes: set model.num_classes={len(dataset.classes)}"
        )


def refuse_to_overwrite(directory: Path, *, resume: bool) -> None:
    """Raise RecipeError where a new run would replace the state of another."""
    if (directory / STATE).exists() and not resume:
        raise RecipeError(
            f"{directory} holds a run, {kept(directory)}: "
            f"go on with --resume {directory}, or choose another --out"
        )


def log_rate(config: Recipe) -> None:
    """Say which learning rate follows from the batch."""
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


if __name__ == "__main__":
    raise SystemExit(main())
