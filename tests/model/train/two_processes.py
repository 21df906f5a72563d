"""The program that test_distributed runs in two processes, by `torchrun -m`, with DATA and OUT."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.data.dataset import find
from model.network.deeplab import DeepLabV3Plus
from model.train import assembly, distributed, training
from model.train.distributed import World
from model.train.recipe import Recipe
from model.train.run import RunFolder, TrainingError
from model.train.step import train_step
from model.train.validation import judge
from tests.model.train.test_main import make_recipe, pace

CHANGES: dict[str, object] = {
    "iterations": 4,
    "accumulate": 2,
    # Dropout draws different noise in each process; everything else must be equal.
    "model": {**make_recipe().model.model_dump(), "aspp_dropout": 0.0},
    "class_weights": [0.5] + [1.0] * 20,
    "hard_mining": 0.5,
    "validation_split": "train",
    "validate_every": 2,
}

# Gradients of micro-batches add up to those of the batch where batch norm does not see them.
FROZEN: dict[str, object] = {
    **CHANGES,
    "freeze_batch_norm": True,
    "lovasz": 0.5,
    "dice": 0.5,
    "focal": 1.0,
    "validation_split": None,
    "validate_every": 0,
}
TEACHER = "teacher1"  # name of a checkpoint in OUT


def taught(out: Path) -> dict[str, object]:
    """Changes for a run with a teacher that gives hints."""
    return {**FROZEN, "teachers": [str(out / TEACHER)], "hints": 1.0}


UNEVEN = 5  # photos, for two processes


def in_float64(build: Callable[[Recipe], DeepLabV3Plus]) -> Callable[[Recipe], DeepLabV3Plus]:
    """Build networks of float64: training amplifies float32's rounding to percents of the loss."""
    return lambda config: build(config).double()


def run(
    data: Path,
    out: Path,
    world: World,
    *,
    resume: bool = False,
    changes: dict[str, object] = CHANGES,
) -> Path:
    config = make_recipe(**changes)
    dataset = find("voc", data, "train")
    out.mkdir(exist_ok=True)
    return training.train(
        config,
        dataset,
        RunFolder(out, world),
        pace(config),
        resume=resume,
        workers=0,
        validated_on=dataset if config.validation_split else None,
    )


def judge_unevenly(data: Path, out: Path, world: World) -> None:
    """Validate on one photo more than the processes can share out."""
    dataset = find("voc", data, "train")
    net = assembly.build(make_recipe()).eval()
    confusion = judge(net, replace(dataset, pairs=dataset.pairs[:UNEVEN]), world)
    np.save(out / f"uneven{world.rank}.npy", confusion.counts)


def stop_by_a_signal_to_one(data: Path, out: Path, world: World) -> None:
    """Signal the second process in its third iteration; both save and end."""
    step, calls = train_step, 0

    def signalled(*args: object, **options: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 3 and world.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(*args, **options)  # type: ignore[arg-type]

    training.train_step = signalled  # type: ignore[attr-defined]
    try:
        run(data, out, world)
    except TrainingError as error:
        (out / f"stopped{world.rank}.txt").write_text(str(error))
    training.train_step = step  # type: ignore[attr-defined]


def fail_to_load_in_one(data: Path, out: Path, world: World) -> None:
    """The second process finds no photos."""
    try:
        run(data if world.is_main else _without_photos(data, out), out, world)
    except TrainingError as error:
        (out / f"failed{world.rank}.txt").write_text(str(error))


def _without_photos(data: Path, out: Path) -> Path:
    base = Path("VOCdevkit", "VOC2012")
    (out / base / "ImageSets").mkdir(parents=True)
    (out / base / "ImageSets" / "Segmentation").symlink_to(data / base / "ImageSets/Segmentation")
    return out


def fail_to_judge_in_one(data: Path, out: Path, world: World) -> None:
    """One of the second process's photos for validation does not exist."""
    config = make_recipe(**{**CHANGES, "iterations": 2})
    dataset = find("voc", data, "train")
    lost = replace(dataset.pairs[1], image=data / "lost.jpg")
    held_out = replace(dataset, pairs=(dataset.pairs[0], lost))
    folder = RunFolder(out, world)
    try:
        training.train(
            config, dataset, folder, pace(config), resume=False, workers=0, validated_on=held_out
        )
    except OSError as error:
        (out / f"failed{world.rank}.txt").write_text(str(error))


def normalise_in_slices(out: Path, world: World) -> None:
    """Run batch norm on this process's half of a batch; return gradients and statistics."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5) * 3 + 100  # far from zero, where sums of squares cancel
    factor = torch.randn(4, 3, 5, 5)
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1))
    distributed.synchronise_batch_norm(net, world)
    half = slice(2 * world.rank, 2 * world.rank + 2)
    part = x[half].clone().requires_grad_()
    y = net(part)
    (y * factor[half]).sum().backward()
    gathered = {"y": y.detach(), "gradient": part.grad, **net.state_dict()}
    torch.save(gathered, out / f"norm{world.rank}.pt")


def ask_pytorchs_own(out: Path, world: World) -> None:
    """Keep what PyTorch's SyncBatchNorm says to a tensor on a CPU."""
    try:
        nn.SyncBatchNorm(3)(torch.randn(2, 3, 5, 5))
    except ValueError as error:
        (out / "syncbn.txt").write_text(str(error))


def main() -> None:
    torch.set_num_threads(1)
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    with distributed.join() as world:
        run(data, out / "taught", world, changes=taught(out))
        assembly.build = in_float64(assembly.build)  # type: ignore[assignment]
        run(data, out / "whole", world)
        (out / "cut").mkdir(exist_ok=True)
        stop_by_a_signal_to_one(data, out / "cut", world)
        run(data, out / "cut", world, resume=True)
        (out / "failed").mkdir(exist_ok=True)
        fail_to_load_in_one(data, out / "failed", world)
        (out / "unjudged").mkdir(exist_ok=True)
        fail_to_judge_in_one(data, out / "unjudged", world)
        normalise_in_slices(out, world)
        run(data, out / "frozen", world, changes=FROZEN)
        judge_unevenly(data, out, world)
        ask_pytorchs_own(out, world)


if __name__ == "__main__":
    main()
