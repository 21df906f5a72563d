"""Speed and result of training with channels last, bfloat16 and torch.compile.

All variants start from the bundled network and learn the same batch of drawn shapes. They take
turns, so that other work on the machine affects all of them. The first one, float32 in NCHW, is
what the others are compared with: their loss in every iteration, and their weights at the end.
Batch norm is frozen, because statistics of a few crops amplify rounding errors, and the learning
rate is low, because a loss that jumps amplifies them too. A network with a new head would not do:
its logits are nearly zero, and so its loss is the same whatever the arithmetic. Processor time
says more than seconds where other work runs on the machine's CPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import checkpoint
from model.bench.sides import CONTESTS, recipe_of
from model.data import shapes
from model.data.loader import Batch, Sample
from model.network.config import EFFICIENTNET_LITE
from model.train.assembly import start
from model.train.distributed import World
from model.train.loss import PixelLoss
from model.train.recipe import Recipe
from model.train.run import Run
from model.train.step import train_step

START = {
    "init": str(checkpoint.BUNDLED / "efficientnet-lite0-voc"),
    "freeze_batch_norm": True,
    "learning_rate": 2e-4,
}
PLAIN = {"channels_last": False, "precision": "fp32", "compile": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32, NCHW": PLAIN,
    "channels last": PLAIN | {"channels_last": True},
    "bf16": PLAIN | {"precision": "bf16"},
    "channels last, bf16": PLAIN | {"channels_last": True, "precision": "bf16"},
    "channels last, compile": PLAIN | {"channels_last": True, "compile": True},
}
# Largest relative difference of the loss in any iteration. Rounding grows with each iteration:
# float32 keeps 7 digits, bfloat16 fewer than 3.
LOSS_BOUND = {"fp32": 1e-3, "bf16": 2e-2}
# Largest distance of the weights from those of the first variant, relative to how far the first
# variant's have moved.
WEIGHT_BOUND = {"fp32": 2e-2, "bf16": 0.3}


@dataclass
class Trial:
    """A variant in training."""

    name: str
    config: Recipe
    run: Run
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)  # of all threads
    losses: list[float] = field(default_factory=list)

    def step(self, batch: Batch, world: World) -> None:
        """Run and time one iteration."""
        loss = PixelLoss()
        began, used = time.perf_counter(), time.process_time()
        value = train_step(
            self.run,
            batch,
            loss.weight(batch.labels),
            factor=1.0,
            loss=loss,
            config=self.config,
            world=world,
        )
        self.seconds.append(time.perf_counter() - began)
        self.processor_seconds.append(time.process_time() - used)
        self.losses.append(value)

    def weights(self) -> Tensor:
        """All parameters in one vector, float64."""
        named = sorted(self.run.net.named_parameters())
        return torch.cat([p.detach().double().flatten().cpu() for _, p in named])


def trials(args: argparse.Namespace, world: World) -> list[Trial]:
    """All variants at iteration 0; without dropout, whose noise follows the memory's order."""
    model = CONTESTS["light"].model | {"aspp_dropout": 0.0}
    base = recipe_of(model | EFFICIENTNET_LITE, args)
    base = base.model_copy(update=START)
    found = []
    for name, changes in VARIANTS.items():
        config = base.model_copy(update=changes)
        found.append(Trial(name, config, start(config, world)))
    return found


def shapes_batch(args: argparse.Namespace) -> Batch:
    """Crops that a network can learn: drawn shapes, enlarged to the size of the crop."""
    rng, side = np.random.default_rng(0), (args.crop, args.crop)
    samples = []
    for _ in range(args.batch):
        image, mask = map(Image.fromarray, shapes.draw(rng))
        pixels = np.array(image.resize(side))
        labels = np.array(mask.resize(side, Image.Resampling.NEAREST))
        samples.append(Sample(torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)))
    return Batch.of(samples)


def compare_variants(args: argparse.Namespace, world: World) -> list[dict[str, Any]]:
    """A row for each variant: speed, difference of losses and weights, and whether they fit."""
    batch = shapes_batch(args)
    found = trials(args, world)
    begin = found[0].weights()
    for _ in range(1 + args.iterations):
        for trial in found:
            trial.step(batch, world)
    return [row(trial, found[0], begin) for trial in found]


def row(trial: Trial, plain: Trial, begin: Tensor) -> dict[str, Any]:
    """The figures of one variant against the first one, whose weights were `begin`."""
    # Leave out the first iteration, which allocates and compiles.
    each, reference = (statistics.median(t.seconds[1:]) for t in (trial, plain))
    used, reference_used = (statistics.median(t.processor_seconds[1:]) for t in (trial, plain))
    pairs = zip(trial.losses, plain.losses, strict=True)
    loss = max(abs(ours / theirs - 1) for ours, theirs in pairs)
    way = (plain.weights() - begin).norm()
    weights = float((trial.weights() - plain.weights()).norm() / way)
    precision = trial.config.precision
    return {
        "variant": trial.name,
        "crops_per_second": round(trial.config.batch_size / each, 3),
        "speed": round(reference / each, 3),
        "speed_by_processor_time": round(reference_used / used, 3),
        "loss_difference": loss,
        "weight_difference": weights,
        "equal": loss <= LOSS_BOUND[precision] and weights <= WEIGHT_BOUND[precision],
    }


def show_variants(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    titles = ("crops/s", "speed", "(processor time)", "loss differs", "weights differ", "equal")
    lines = [f"{'variant':24}{'  '.join(titles)}"]
    for each in rows:
        speeds = f"{each['speed']:5.2f}  {each['speed_by_processor_time']:16.2f}"
        apart = f"{each['loss_difference']:12.1e}  {each['weight_difference']:14.1e}"
        equal = "yes" if each["equal"] else "NO"
        lines.append(
            f"{each['variant']:24}{each['crops_per_second']:7.2f}  {speeds}  {apart}  {equal:>5}"
        )
    bounds = ", ".join(
        f"{kind}: {LOSS_BOUND[kind]:g} of the loss, {WEIGHT_BOUND[kind]:g} of the weights' movement"
        for kind in LOSS_BOUND
    )
    return "\n".join([*lines, f"bounds: {bounds}"])
