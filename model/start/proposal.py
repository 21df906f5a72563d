"""Propose a recipe for a data set and this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from model.data.report import Report
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.train.loss import PixelLoss
from pixels.bands import PHOTO, Samples

VIEWS = 50  # of each photo: docs/data.md
LEAST, MOST = 60, 20_000  # iterations
BATCH = 8
SMALLEST_CROP, LARGEST_CROP = 129, 513
RARE = 0.01  # share of the pixels below which a class is rare
SHARE_OF_TIME = 0.85  # share of the time for iterations; the rest is start, saving and evaluation
INIT = "model/bundled/efficientnet-lite0-voc"

RECIPE = """\
description = "{description}"
init = "{init}"
init_part = "features"
dataset = "{dataset}"
split = "{split}"
iterations = {iterations}
batch_size = {batch}
learning_rate = 0.01
head_multiplier = 10.0
nesterov = true
warmup = {warmup}
ema_decay = {ema}
{sampling}
[model]
backbone = "efficientnet_lite0"
num_classes = {classes}
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
{channels}aspp_separable = true
decoder_separable = true
crop_size = [{height}, {width}]

[augment]
crop = {crop}
min_scale = 0.5
max_scale = 2.0
jitter = 0.2
"""


@dataclass(frozen=True)
class Proposal:
    """A training that fits the data and the time."""

    dataset: str
    split: str
    photos: int
    classes: int
    crop_size: tuple[int, int]  # (H, W) of the network's input in service
    crop: int  # in training
    iterations: int
    seconds: float  # of an iteration, measured
    rare: tuple[str, ...]
    samples: Samples = PHOTO

    @property
    def views(self) -> float:
        """How often each photo is seen."""
        return self.iterations * BATCH / max(1, self.photos)

    def recipe(self) -> str:
        """The recipe as TOML."""
        return RECIPE.format(
            description=f"Your data: {self.photos} photos, {self.classes} classes",
            init=INIT,
            dataset=self.dataset,
            split=self.split,
            iterations=self.iterations,
            batch=BATCH,
            warmup=min(100, self.iterations // 10),
            ema=0.998 if self.iterations >= 1000 else 0.98,
            sampling='sampling = "balanced"\n' if self.rare else "",
            classes=self.classes,
            channels=_channels(self.samples),
            height=self.crop_size[0],
            width=self.crop_size[1],
            crop=self.crop,
        )

    def lines(self) -> list[str]:
        """Describe the proposal and its reasons."""
        minutes = self.iterations * self.seconds / 60
        height, width = self.crop_size
        views = f"each photo is seen {self.views:.0f} times ({VIEWS} is usual)"
        pace = f"{self.seconds:.2f} s an iteration on this machine"
        lines = [
            f"crop: {self.crop} pixels in training, photos served at up to {width} x {height}",
            f"iterations: {self.iterations} of {BATCH} crops: {views}",
            f"time: about {minutes:.0f} minutes ({pace})",
        ]
        if self.iterations < LEAST:
            enough = LEAST * self.seconds / 60 / SHARE_OF_TIME
            lines.append(
                f"too few iterations: below {LEAST} a network hardly learns; give --minutes "
                f"{enough:.0f} or more, or wait until nothing else keeps this machine busy"
            )
        if self.rare:
            lines.append(f"rare classes: {', '.join(self.rare)}; photos with them are shown more")
        return lines


def propose(
    report: Report, minutes: float, measure: Callable[[int, int], float] | None = None
) -> Proposal:
    """Choose crop and iterations for a checked split.

    `measure` returns the seconds of an iteration for a number of classes and a crop. The
    default measures on this machine.
    """
    sizes = np.array(report.sizes)
    height, width = (grid(int(np.median(sizes[:, at])), 4) for at in (1, 0))
    crop = grid(min(height, width), 16)
    seconds = (measure or iteration_seconds)(len(report.dataset.classes), crop)
    photos = len(report.dataset.pairs)
    wanted = max(LEAST, min(MOST, round(VIEWS * photos / BATCH)))
    possible = max(1, int(60 * minutes * SHARE_OF_TIME / seconds))
    total = max(1, int(report.pixels.sum()))
    rare = tuple(
        name
        for name, count in zip(report.dataset.classes, report.pixels.tolist(), strict=True)
        if 0 < count / total < RARE
    )
    return Proposal(
        report.dataset.name,
        report.dataset.split,
        photos,
        len(report.dataset.classes),
        (height, width),
        crop,
        min(wanted, possible),
        seconds,
        rare,
        report.dataset.samples,
    )


def _channels(samples: Samples) -> str:
    """The recipe's lines for more than three channels."""
    if samples == PHOTO:
        return ""
    limits = "" if samples.range is None else f"sample_range = {[*samples.range]}\n"
    return f"channels = {samples.channels}\n{limits}"


def grid(side: int, step: int) -> int:
    """Return the largest step * k + 1 up to a photo's side, within the useful sizes."""
    bounded = min(LARGEST_CROP, max(SMALLEST_CROP, side))
    return (bounded - 1) // step * step + 1


def iteration_seconds(classes: int, crop: int, repeats: int = 2) -> float:
    """Measure an iteration's forward and backward pass on this machine, after one to warm up."""
    config = ModelConfig(
        backbone="efficientnet_lite0",
        num_classes=classes,
        aspp_separable=True,
        decoder_separable=True,
        crop_size=(crop, crop),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = DeepLabV3Plus(config).to(device).to(memory_format=torch.channels_last).train()
    images = torch.rand(BATCH, 3, crop, crop, device=device) * 255
    labels = torch.randint(0, classes, (BATCH, crop, crop), dtype=torch.uint8, device=device)
    loss, times = PixelLoss(), []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        loss.sum(net(images), labels).backward()  # type: ignore[no-untyped-call]
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
