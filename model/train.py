"""Train DeepLabv3+ by the paper's protocol: `python -m model.train PRESET --data DIR`.

Section 4 of the paper: SGD with momentum, the poly policy, random scale, crop
and flip, cross-entropy on logits resized to the label's size, void ignored. A
run is a function of its recipe: every random choice follows from the seed and
the iteration, so a killed run continues with --resume as if nothing happened.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model import checkpoint, pretrained, recipe
from model.checkpoint import Card
from model.data.dataset import VOID, Dataset, DatasetError, find
from model.data.loader import CropDataset, Order, balanced_weights, loader
from model.deeplab import DeepLabV3Plus
from model.layers import resize
from model.recipe import Recipe, RecipeError

log = logging.getLogger("model.train")

STATE = "state.pt"
LOG = "log.jsonl"
LOG_EVERY = 20  # iterations
NAME = "model"  # of the finished checkpoint
MIN_NORM_BATCH = 8  # images; fewer make batch-norm fine-tuning lose accuracy


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@dataclass
class Run:
    """Everything that a resumed run needs."""

    net: DeepLabV3Plus
    optimizer: torch.optim.SGD
    average: dict[str, Tensor] | None
    iteration: int = 0

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "iteration": self.iteration,
        }


def poly(iteration: int, config: Recipe) -> float:
    """Factor of the initial learning rate: (1 - i / n) ** power, after a linear warm-up."""
    warm = min(1.0, (iteration + 1) / (config.warmup + 1))
    return float(warm * (1 - iteration / config.iterations) ** config.power)


def build(config: Recipe) -> DeepLabV3Plus:
    """The network with its initial weights."""
    torch.manual_seed(config.seed)
    net = DeepLabV3Plus(config.model)
    if config.init is not None:
        pretrained.initialise(net, config.init, config.init_part)
    if config.batch_norm_momentum is not None:
        for norm in batch_norms(net):
            norm.momentum = config.batch_norm_momentum
    return net


def batch_norms(net: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """All batch-norm layers of a network."""
    return (module for module in net.modules() if isinstance(module, nn.BatchNorm2d))


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
            "rate": config.learning_rate * (1.0 if backbone else config.head_multiplier),
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


def preflight(config: Recipe) -> None:
    """Refuse what is known to waste a training; warn of what is likely to.

    Raises RecipeError when the crop does not align with the output stride, or
    when the batch norm behind the image pooling would see a single value.
    """
    crop, stride = config.augment.crop, config.model.output_stride
    if (crop - 1) % stride:
        below = (crop - 1) // stride * stride + 1
        raise RecipeError(
            f"augment.crop={crop}: maps align at output stride {stride} only when the crop is a "
            f"multiple of it plus one; take {below} or {below + stride}"
        )
    if config.freeze_batch_norm:
        return
    if config.batch_size == 1 and config.model.image_pooling:
        raise RecipeError(
            "batch_size=1: the batch norm of the image pooling has one value per channel and "
            "cannot be trained; take batch_size=2 or more, freeze_batch_norm=true, or "
            "model.image_pooling=false"
        )
    if config.batch_size < MIN_NORM_BATCH:
        log.warning(
            "batch norm is trained on batches of %d; below %d its statistics are noisy: "
            "raise batch_size, or set freeze_batch_norm=true",
            config.batch_size,
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


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over judged pixels: logits (N, K, h, w), labels (N, H, W) uint8."""
    logits = resize(logits.float(), (labels.shape[1], labels.shape[2]))
    # Classes last: the softmax then runs along contiguous memory.
    flat = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return F.cross_entropy(flat, labels.reshape(-1).long(), ignore_index=VOID)


def train_step(
    run: Run, images: Tensor, labels: Tensor, config: Recipe, device: torch.device
) -> float:
    """One iteration on one batch; returns the loss."""
    factor = poly(run.iteration, config)
    for group in run.optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    torch.manual_seed(hash((config.seed, run.iteration)) & 0x7FFF_FFFF)  # dropout
    images = images.to(device, torch.float32, memory_format=torch.channels_last)
    labels = labels.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = run.net(images)
    loss = loss_of(logits, labels)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"loss is {value} at iteration {run.iteration}: lower learning_rate "
            f"(now {config.learning_rate}) or lengthen warmup (now {config.warmup}); "
            "the last checkpoint is intact"
        )
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    run.iteration += 1
    if run.average is not None:
        update_average(run, config.ema_decay)
    return value


@torch.no_grad()
def update_average(run: Run, decay: float) -> None:
    """Move the averaged weights towards the current ones, faster in the first iterations."""
    assert run.average is not None
    decay = min(decay, (1 + run.iteration) / (10 + run.iteration))
    for key, value in run.net.state_dict().items():
        if value.is_floating_point():
            run.average[key].lerp_(value, 1 - decay)
        else:
            run.average[key].copy_(value)


def save_state(run: Run, directory: Path) -> None:
    """Write what --resume needs, atomically."""
    partial = directory / f".{STATE}.partial"
    torch.save(run.state(), partial)
    checkpoint.replace_durably(partial, directory / STATE)


def restore(run: Run, directory: Path) -> None:
    """Load what `save_state` wrote; rates and decay stay those of the recipe at hand."""
    state = torch.load(directory / STATE, weights_only=True, map_location="cpu")
    run.net.load_state_dict(state["net"])
    settings = [
        {key: group[key] for key in ("rate", "weight_decay", "momentum")}
        for group in run.optimizer.param_groups
    ]
    run.optimizer.load_state_dict(state["optimizer"])
    for group, chosen in zip(run.optimizer.param_groups, settings, strict=True):
        group.update(chosen)
    run.average = state["average"]
    run.iteration = state["iteration"]


def start(config: Recipe, device: torch.device) -> Run:
    """A run at iteration 0."""
    net = build(config).to(device).to(memory_format=torch.channels_last).train()
    if config.precision == "bf16" and device.type == "cpu":
        keep_depthwise_in_fp32(net)
    if config.freeze_batch_norm:
        for norm in batch_norms(net):
            norm.eval()
    freeze(net, config.frozen)
    optimizer = torch.optim.SGD(
        parameter_groups(net, config),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    average = {k: v.clone() for k, v in net.state_dict().items()} if config.ema_decay else None
    return Run(net, optimizer, average)


def train(
    config: Recipe, dataset: Dataset, directory: Path, *, resume: bool, workers: int, every: int
) -> Path:
    """Train by `config`, keeping state below `directory`; returns the checkpoint's path."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = start(config, device)
    if resume and (directory / STATE).exists():
        restore(run, directory)
        log.info("resumed at iteration %d", run.iteration)
    weights = balanced_weights(dataset) if config.sampling == "balanced" else None
    crops = CropDataset(
        dataset, Order(len(dataset.pairs), config.seed, weights), config.augment, config.model.mean
    )
    batches = loader(
        crops,
        start=run.iteration,
        stop=config.iterations,
        batch=config.batch_size,
        workers=workers,
    )
    with StopSignals() as signals:
        loop(run, config, batches, directory, every=every, signals=signals)
    return finish(run, config, dataset, directory)


def loop(
    run: Run,
    config: Recipe,
    batches: Iterable[tuple[Tensor, Tensor]],
    directory: Path,
    *,
    every: int,
    signals: StopSignals,
) -> None:
    """Train on all batches, saving every so many iterations, at a signal and at the end."""
    device = run.net.logits.weight.device
    shown = sys.stderr.isatty()
    bar = tqdm(batches, initial=run.iteration, total=config.iterations, disable=not shown)
    began, losses = time.monotonic(), []
    for images, labels in bar:
        losses.append(train_step(run, images, labels, config, device))
        if run.iteration % LOG_EVERY == 0:
            rate = len(losses) * config.batch_size / (time.monotonic() - began)
            record(directory, run.iteration, sum(losses) / len(losses), rate)
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            began, losses = time.monotonic(), []
        if run.iteration % every == 0 or signals.received:
            save_state(run, directory)
        if signals.received:
            raise TrainingError(
                f"stopped by a signal after iteration {run.iteration}: "
                f"go on with --resume {directory}"
            )
    save_state(run, directory)


class StopSignals:
    """While entered, SIGTERM and SIGINT let the iteration at hand finish and be saved."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.received = True


def record(directory: Path, iteration: int, loss: float, rate: float) -> None:
    """Log the progress and append it to the run's JSON lines."""
    line = {"iteration": iteration, "loss": round(loss, 4), "crops_per_second": round(rate, 2)}
    with (directory / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if not sys.stderr.isatty():
        log.info("iteration %d  loss %.4f  %.2f crops/s", iteration, loss, rate)


def finish(run: Run, config: Recipe, dataset: Dataset, directory: Path) -> Path:
    """Write the trained network (averaged, if asked for) as a checkpoint."""
    card = Card(
        model=config.model,
        classes=dataset.classes,
        palette=dataset.palette,
        training=config.model_dump(mode="json", exclude={"model"}),
        source=f"trained by model.train on {dataset.name} {dataset.split}",
    )
    return checkpoint.save(directory / NAME, run.average or run.net.state_dict(), card)


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
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if args.list:
        for name in recipe.presets():
            print(f"{name:28} {recipe.read(name, []).description}")
        return 0
    directory = args.resume or args.out
    if args.recipe is None or args.data is None or directory is None:
        p.error("give a recipe, --data DIR and --out DIR (or --resume DIR)")
    try:
        config = recipe.read(args.recipe, args.overrides)
        preflight(config)
        dataset = find(config.dataset, args.data, config.split)
        directory.mkdir(parents=True, exist_ok=True)
        path = train(
            config,
            dataset,
            directory,
            resume=args.resume is not None,
            workers=args.workers,
            every=args.save_every,
        )
    except (RecipeError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingError, checkpoint.CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    log.info("wrote %s", path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
