"""How long the stages of a sequence will take here, from a few timed passes on made-up photos."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from model.data.dataset import find
from model.data.loader import Batch
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import scaled
from model.paper.reproduce.plan import Evaluation, Stage, Submission, Training
from model.paper.reproduce.run import Settings
from model.train.assembly import start
from model.train.distributed import World
from model.train.loss import PixelLoss
from model.train.recipe import Recipe
from model.train.step import train_step

TIMED = 3  # iterations, after a first one, which allocates
PHOTO = {"voc": (375, 500), "cityscapes": (1024, 2048)}  # the usual height and width


def hours(stage: Stage, settings: Settings, device: torch.device) -> float:
    """About how long a stage takes, without loading photos and exchange between processes."""
    match stage:
        case Training():
            return _training(settings.recipe(stage), settings.processes, device)
        case Evaluation() | Submission():
            return _evaluation(stage, settings, device)


def _training(config: Recipe, processes: int, device: torch.device) -> float:
    """A process's share of an iteration, times the iterations.

    On a CPU one crop is timed and counted as often as the share has crops.
    """
    share = max(1, config.batch_size // processes)
    crops = share if device.type == "cuda" else 1
    alone = config.model_copy(update={"init": None, "batch_size": crops, "freeze_batch_norm": True})
    run, loss, world = start(alone, World(device)), PixelLoss(), World(device)
    side = config.augment.crop
    labels = torch.randint(0, config.model.num_classes, (crops, side, side)).to(torch.uint8)
    batch = Batch(torch.zeros((crops, 3, side, side), dtype=torch.uint8), labels, [])

    def step() -> None:
        weight = loss.weight(batch.labels)
        train_step(run, batch, weight, factor=1.0, loss=loss, config=alone, world=world)

    return _seconds(step) * share / crops * config.iterations / 3600


def _evaluation(stage: Evaluation | Submission, settings: Settings, device: torch.device) -> float:
    """One photo's passes, times the photos; evaluation takes one GPU."""
    sequence = settings.sequence
    training = next(one for one in sequence.trainings if one.name == stage.of)
    split = "val" if isinstance(stage, Evaluation) else "test"
    photos = len(find(sequence.dataset, settings.data, split).pairs)
    multi_scale = stage.multi_scale if isinstance(stage, Evaluation) else True
    scales = Evaluation(stage.of, stage.output_stride, multi_scale).scales
    config = settings.recipe(training).model.model_copy(
        update={"output_stride": stage.output_stride}
    )
    net = _network(config, device)
    sides = (
        max(have, wanted)
        for have, wanted in zip(PHOTO[sequence.dataset], config.crop_size, strict=True)
    )
    height, width = sides
    passes = [(scaled(height, scale), scaled(width, scale)) for scale in scales]
    images = [torch.zeros((1, 3, *size), device=device) for size in passes]

    def step() -> None:
        with torch.inference_mode():
            for image in images:
                net(image)[0, 0, 0, 0].item()  # waits for the device

    return _seconds(step) * (1 + multi_scale) * photos / 3600


def _network(config: ModelConfig, device: torch.device) -> DeepLabV3Plus:
    net = DeepLabV3Plus(config).eval().to(device)
    return net.to(memory_format=torch.channels_last)


def _seconds(step: Callable[[], None]) -> float:
    """The median time of a step after a first one; of the first one alone if that is long."""
    times = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
        if sum(times) > 60:
            break
    return statistics.median(times[1:] or times)
