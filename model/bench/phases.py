"""Measure the time of training by phase: loader, forward, loss, backward and update."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from model.bench.sides import CONTESTS, random_batch, recipe_of
from model.data.augment import AugmentConfig
from model.data.dataset import VOC_CLASSES, Dataset, Pair, voc_palette
from model.data.loader import CropDataset, Order
from model.train import training
from model.train.assembly import start
from model.train.distributed import World
from model.train.loss import PixelLoss
from model.train.run import LOG, Pace, RunFolder
from model.train.step import train_step

PHOTO = (500, 375)  # the usual size of a photo of VOC
PHOTOS = 32
LIGHT = CONTESTS["light"].model


@dataclass
class Stopwatch:
    """Adds up the seconds of named phases."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block, until the device has finished its work."""
        began = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class TimedModule(nn.Module):
    """A network whose forward pass is timed."""

    def __init__(self, module: nn.Module, watch: Stopwatch) -> None:
        super().__init__()
        self.module, self.watch = module, watch

    def forward(self, images: Tensor) -> Tensor:
        """Call the network."""
        with self.watch.phase("forward"):
            return self.module(images)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TimedLoss:
    """A loss whose forward pass is timed."""

    loss: PixelLoss
    watch: Stopwatch

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Call the loss."""
        with self.watch.phase("loss"):
            return self.loss.sum(logits, labels)


def phases(args: argparse.Namespace, world: World) -> dict[str, float]:
    """Milliseconds by phase of a median iteration of the light network.

    `backward` is the rest of an iteration: the gradients, and the batch's transfer to the device.
    """
    config, batch = recipe_of(LIGHT, args), random_batch(args)
    run, loss = start(config, world), PixelLoss()
    watch = Stopwatch(world.device)
    run.module = TimedModule(run.module, watch)
    optimizer: Any = run.optimizer  # its method is replaced for this measurement
    plain_step = optimizer.step

    def update(*given: Any) -> Any:
        with watch.phase("update"):
            return plain_step(*given)

    optimizer.step = update
    rows: list[dict[str, float]] = []
    weight = loss.weight(batch.labels)
    for _ in range(1 + args.iterations):
        watch.seconds = {}
        with watch.phase("whole"):
            train_step(
                run,
                batch,
                weight,
                factor=1.0,
                loss=TimedLoss(loss, watch),
                config=config,
                world=world,
            )
        whole = watch.seconds.pop("whole")
        backward = whole - sum(watch.seconds.values())
        rows.append({**watch.seconds, "backward": backward})
    rows = rows[1:]  # the first one allocates and compiles
    names = ("forward", "loss", "backward", "update")
    return {name: round(1000 * statistics.median(row[name] for row in rows), 2) for name in names}


def loader_ms(args: argparse.Namespace) -> float:
    """Milliseconds that a loader process takes to read, scale and cut one crop."""
    config = AugmentConfig(crop=args.crop, jitter=0.2)
    with tempfile.TemporaryDirectory() as name:
        dataset = made_up_photos(Path(name))
        crops = CropDataset(dataset, Order(PHOTOS, 0), config, (127.5,) * 3)
        times = []
        for position in range(PHOTOS):
            began = time.process_time()
            crops[position]
            times.append(time.process_time() - began)
    return round(1000 * statistics.median(times), 2)


def made_up_photos(folder: Path) -> Dataset:
    """Photos of VOC's size and their masks, on disk."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(PHOTOS):
        pair = Pair(str(index), folder / f"{index}.jpg", folder / f"{index}.png")
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize(PHOTO, Image.Resampling.BICUBIC).save(pair.image, quality=90)
        mask = Image.fromarray(rng.integers(0, 21, (6, 8), dtype=np.uint8))
        mask.resize(PHOTO, Image.Resampling.NEAREST).save(str(pair.mask))
        pairs.append(pair)
    palette = voc_palette(len(VOC_CLASSES))
    return Dataset("made up", "train", tuple(pairs), VOC_CLASSES, palette)


def waiting(args: argparse.Namespace, world: World) -> float:
    """Share of time that a training of the light network waits for its loader's processes."""
    augment = AugmentConfig(crop=args.crop, jitter=0.2)
    config = recipe_of(LIGHT, args).model_copy(
        update={"augment": augment, "iterations": args.iterations + 1}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pace = Pace(config.iterations, config.batch_size, save_every=10**6, log_every=1)
        run_folder = RunFolder(folder, world)
        training.train(
            config, made_up_photos(folder), run_folder, pace, resume=False, workers=args.workers
        )
        lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    # Leave out the first wait, for the processes to start.
    return float(statistics.mean(line["waiting"] for line in lines[1:]))
