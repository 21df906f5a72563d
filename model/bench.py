"""Compare training speed with segmentation_models_pytorch in one run: `make bench-train`.

Both train the same backbones at the same crop, batch and precision with random weights:
ours as `model.train` runs them, theirs in the usual loop of their examples. Each has a
process of its own, since how a process keeps memory is part of its speed. The two take
turns and each reports its median iteration, so that other work on the machine affects both.
Compare the ratio; crops per second depend on the machine. The last line is the share of
time that the loop waits for its loader.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from model import memory
from model.data.augment import AugmentConfig
from model.data.dataset import VOC_CLASSES, VOID, Dataset, Pair, voc_palette
from model.data.loader import Batch
from model.train import training
from model.train.assembly import start
from model.train.distributed import World
from model.train.loss import PixelLoss
from model.train.recipe import Recipe
from model.train.run import LOG, Pace, RunFolder
from model.train.step import train_step

# Our backbone, and theirs. Their head is separable, so ours is too.
NETS = {
    "light": ("efficientnet_lite0", "timm-tf_efficientnet_lite0"),
    "resnet101": ("resnet101", "resnet101"),
}
PHOTO = (500, 375)  # the usual size of a photo of VOC
PHOTOS = 32

Step = Callable[[], object]


def this_machine() -> World:
    """The GPU, or the CPU of a machine without one."""
    return World(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def recipe_of(backbone: str, args: argparse.Namespace) -> Recipe:
    """A training with our network."""
    return Recipe.model_validate(
        {
            "model": {"backbone": backbone, "aspp_separable": True, "decoder_separable": True},
            "augment": {"crop": args.crop},
            "batch_size": args.batch,
            "iterations": args.iterations,
            "precision": args.precision,
            "compile": args.compile,
            "split": "train",
        }
    )


def random_batch(args: argparse.Namespace) -> Batch:
    """Noise, and labels with a tenth of void."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, args.crop, args.crop)
    images = torch.randint(0, 256, (args.batch, 3, *shape[1:]), generator=generator)
    labels = torch.randint(0, len(VOC_CLASSES), shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = VOID
    return Batch(images.to(torch.uint8), labels.to(torch.uint8), [])


def ours(config: Recipe, batch: Batch, world: World) -> tuple[nn.Module, Step]:
    """Our network and one iteration of it."""
    run, loss = start(config, world), PixelLoss()

    def step() -> float:
        weight = loss.weight(batch.labels)
        return train_step(run, batch, weight, factor=1.0, loss=loss, config=config, world=world)

    return run.net, step


def theirs(encoder: str, config: Recipe, batch: Batch, world: World) -> tuple[nn.Module, Step]:
    """Their network and one iteration of the usual loop."""
    import segmentation_models_pytorch as smp  # noqa: PLC0415 - an extra of the developers

    net = smp.DeepLabV3Plus(
        encoder_name=encoder,
        encoder_weights=None,
        encoder_output_stride=16,
        decoder_atrous_rates=config.model.rates,
        classes=config.model.num_classes,
    ).to(world.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=config.rate, momentum=config.momentum)
    kind = torch.float16 if config.precision == "fp16" else torch.bfloat16
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.model.mean, config.model.std))

    def step() -> float:
        images = ((batch.images.float() - mean) / std).to(world.device)
        labels = batch.labels.long().to(world.device)
        with torch.autocast(world.device.type, kind, enabled=config.precision != "fp32"):
            logits: Tensor = net(images)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=VOID)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return float(loss.detach())

    return net, step


def contest(side: str, name: str, args: argparse.Namespace, turns: Connection) -> None:
    """Run in a process: send the number of parameters, then the seconds of each step."""
    world = this_machine()
    backbone, encoder = NETS[name]
    config, batch = recipe_of(backbone, args), random_batch(args)
    if side == "ours":
        memory.keep_freed_on_a_cpu()
        net, step = ours(config, batch, world)
    else:
        net, step = theirs(encoder, config, batch, world)
    turns.send(sum(p.numel() for p in net.parameters()))
    while turns.recv():
        began = time.perf_counter()
        step()  # returns the loss, so the device is done
        turns.send(time.perf_counter() - began)


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Crops per second of both, and their ratio."""
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    processes = []
    for side in ("ours", "theirs"):
        sides[side], end = context.Pipe()
        process = context.Process(target=contest, args=(side, name, args, end), daemon=True)
        process.start()
        end.close()  # the process has its own: if it dies, receiving fails at once
        processes.append(process)
    parameters = {side: turns.recv() for side, turns in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(1 + args.iterations):
        for side, turns in sides.items():
            turns.send(True)
            seconds[side].append(turns.recv())
    for turns, process in zip(sides.values(), processes, strict=True):
        turns.send(False)
        process.join()
    # Leave out the first iteration, which allocates and compiles.
    speeds = {side: args.batch / statistics.median(times[1:]) for side, times in seconds.items()}
    return {
        "net": name,
        "ours_crops_per_second": round(speeds["ours"], 3),
        "theirs_crops_per_second": round(speeds["theirs"], 3),
        "ratio": round(speeds["ours"] / speeds["theirs"], 3),
        "ours_parameters": parameters["ours"],
        "theirs_parameters": parameters["theirs"],
    }


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
    config = recipe_of(NETS["light"][0], args).model_copy(
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


def show(result: dict[str, Any]) -> str:
    """A table to read."""
    rows = [
        f"{row['net']:10} ours {row['ours_crops_per_second']:8.2f} crops/s   "
        f"theirs {row['theirs_crops_per_second']:8.2f} crops/s   ratio {row['ratio']:.2f}   "
        f"parameters {row['ours_parameters']:,} and {row['theirs_parameters']:,}"
        for row in result["nets"]
    ]
    wait = f"waiting for data {result['waiting']:.1%} of the time, {result['workers']} workers"
    return "\n".join([*rows, wait])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.bench --nets light --precision fp32 --compile",
    )
    p.add_argument(
        "--nets", default=",".join(NETS), help=f"networks, from {', '.join(NETS)} (default: all)"
    )
    p.add_argument(
        "--crop", type=int, default=256, help="crop size in pixels, a multiple of 16 (default: 256)"
    )
    p.add_argument("--batch", type=int, default=8, help="crops per iteration (default: 8)")
    p.add_argument(
        "--iterations",
        type=int,
        default=7,
        help="iterations of each, after a first one (default: 7)",
    )
    p.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="number format of both (default: fp32)",
    )
    p.add_argument("--compile", action="store_true", help="run our network with torch.compile")
    p.add_argument("--workers", type=int, default=1, help="processes that read photos (default: 1)")
    p.add_argument("--json", action="store_true", help="print the figures as JSON")
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    names = args.nets.split(",")
    if unknown := [name for name in names if name not in NETS]:
        p.error(f"--nets {unknown[0]}: choose from {', '.join(NETS)}")
    world = this_machine()
    if args.precision == "fp16" and world.device.type != "cuda":
        p.error("--precision fp16 needs a CUDA device")
    result = {
        "device": str(world.device),
        "threads": torch.get_num_threads(),
        "crop": args.crop,
        "batch": args.batch,
        "precision": args.precision,
        "nets": [compare(name, args) for name in names],
        "waiting": round(waiting(args, world), 4),
        "workers": args.workers,
    }
    print(json.dumps(result, indent=2) if args.json else show(result))
    return 0


if __name__ == "__main__":
    memory.keep_freed_on_a_cpu()
    sys.exit(main())
