"""Train a backbone on ImageNet by the paper's protocol: `python -m model.pretrain BACKBONE`.

Section 4.3: Nesterov momentum 0.9, rate 0.05 times 0.94 every 2 epochs, weight
decay 4e-5, 299 x 299 pixels, batches of 32. The paper's 50 GPUs take such steps
asynchronously; here the processes of torchrun share one batch. The result is a
backbone's file for `init` of a segmentation recipe. Its JSON has the error rates on
`val` (table 4): the share of photos whose class is not the most likely one (top-1), and
not among the five most likely (top-5).
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from model import checkpoint, memory
from model.checkpoint import BackboneCard
from model.data.dataset import DatasetError
from model.data.loader import Batch, Batches, Order, Sample, first_readable, loading
from model.data.photo import open_photo, upright_size
from model.network.config import PUBLISHED, AfterDepthwise, BackboneName, ModelConfig
from model.network.deeplab import BACKBONES
from model.network.layers import batch_norms
from model.pydantic_errors import mistakes
from model.train import distributed, recipe
from model.train.assembly import first_run, momentum_of
from model.train.command import command
from model.train.distributed import World
from model.train.lock import locked
from model.train.options import add_overrides, add_run, run_folder
from model.train.preflight import check_folder, check_shares
from model.train.pretrained import initialise_backbone
from model.train.recipe import BaseRecipe, RecipeError
from model.train.run import Pace, Run, RunFolder, loop
from model.train.step import train_step

log = logging.getLogger("model.train")

NAME = "backbone"  # of the finished file
# Evaluation resizes to a larger picture and takes its centre: 331 for 299, like 256 for 224.
MARGIN = 256 / 224


class PretrainRecipe(BaseRecipe):
    """The training of a backbone. The defaults are the paper's (section 4.3)."""

    backbone: BackboneName
    depth_multiplier: Annotated[float, Field(gt=0)] = 1.0  # MobileNetV2 only
    after_depthwise: AfterDepthwise = "batch_norm"  # Xception only; see ModelConfig
    # Weights to start from: a backbone's file, a checkpoint, or "imagenet" for the light
    # backbones' own packages. None: random ones.
    init: str | None = None
    image_size: Annotated[int, Field(ge=32)] = 299
    epochs: Annotated[int, Field(gt=0)] = 100  # ours: the paper gives no length
    batch_size: Annotated[int, Field(gt=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    decay: Annotated[float, Field(gt=0, le=1)] = 0.94
    decay_epochs: Annotated[int, Field(gt=0)] = 2
    warmup: Literal[0] = 0
    nesterov: bool = True

    @field_validator("init")
    @classmethod
    def _nothing_is_none(cls, value: str | None) -> str | None:
        return value or None

    @property
    def network(self) -> ModelConfig:
        """The classifier's network, with the normalisation that its published weights expect."""
        fields = {
            "backbone": self.backbone,
            "depth_multiplier": self.depth_multiplier,
            "after_depthwise": self.after_depthwise,
        }
        published = {k: v for k, v in PUBLISHED[self.backbone].items() if k in ("mean", "std")}
        return ModelConfig.model_validate({**fields, **published, "output_stride": 32})


class Classifier(nn.Module):
    """A backbone, the mean of its last map, and one linear layer."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)
        self.backbone = BACKBONES[config.backbone](config)
        self.logits = nn.Linear(self.backbone.channels.high, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 255], RGB -> (N, K) logits."""
        features = self.backbone((image - self.mean) / self.std)
        return self.logits(features.high.float().mean((2, 3)))  # type: ignore[no-any-return]


class ClassLoss:
    """Cross-entropy of whole images, as a sum."""

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (N, K), labels (N,) -> scalar."""
        return F.cross_entropy(logits.float(), labels, reduction="sum")


class Pictures:
    """Training samples by position in the run: random crop, scale and flip."""

    def __init__(self, folder: ImageFolder, order: Order, size: int) -> None:
        self.folder = folder
        self.order = order
        self.size = size
        self.transform = v2.Compose(
            [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )

    @property
    def sample_bytes(self) -> int:
        """Three bytes of colour for each pixel, and an int64 class id."""
        return 3 * self.size**2 + 8

    def __getitem__(self, position: int) -> Sample:
        """Return the image (3, S, S) uint8 and its class id ()."""
        (image, label), skipped = first_readable(position, lambda at: self.folder[self.order[at]])
        # torchvision draws from the global generator: seed it by position, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.order.seed, position)) & 0x7FFF_FFFF)
            pixels = self.transform(image)
        return Sample(pixels, torch.tensor(label), skipped)


def folder_of(path: Path) -> ImageFolder:
    """Images by class, `CLASS/*.jpeg`, as ImageNet is laid out; raises DatasetError."""
    try:
        return ImageFolder(str(path), loader=lambda file: open_photo(Path(file)))
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: {error}; it holds one folder of photos per class") from error


def splits(data: Path) -> tuple[ImageFolder, ImageFolder | None]:
    """`data/train`, and `data/val` if it exists.

    Raises DatasetError if their classes differ: one number would mean two classes.
    """
    train, val = folder_of(data / "train"), data / "val"
    if len(train.classes) == 1:
        raise DatasetError(f"{data}: a single class cannot be learnt; add another")
    judged = folder_of(val) if val.is_dir() else None
    if judged is not None and judged.classes != train.classes:
        differ = sorted({*judged.classes} ^ {*train.classes})
        raise DatasetError(f"{data}: train and val have different classes, such as {differ[0]}")
    return train, judged


def expect_photos(judged: ImageFolder | None) -> None:
    """Raise DatasetError for a photo that would end the first evaluation, hours from now."""
    for path, _ in judged.samples if judged is not None else ():
        try:
            upright_size(Path(path))  # reads the header alone
        except OSError as error:
            raise DatasetError(f"{error}; the error rate needs every photo of val") from None


def start(config: PretrainRecipe, classes: int, world: World, iterations: int) -> Run:
    """A run at iteration 0 of `iterations`."""
    torch.manual_seed(config.seed)
    net = Classifier(config.network, classes)
    if config.init is not None:
        initialise_backbone(net.backbone, config.network, config.init)
    for norm in batch_norms(net):
        norm.momentum = momentum_of(iterations * config.accumulate, norm.momentum or 0.0)
    net = net.to(world.device).train()
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)
    distributed.synchronise_batch_norm(net, world)
    decayed = [p for p in net.parameters() if p.ndim > 1 and p.shape[1] > 1]
    others = [p for p in net.parameters() if not (p.ndim > 1 and p.shape[1] > 1)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "rate": config.rate},
        {"params": others, "weight_decay": 0.0, "rate": config.rate},
    ]
    return first_run(net, groups, config, world)


@dataclass(frozen=True)
class Schedule:
    """Epochs in iterations."""

    config: PretrainRecipe
    images: int

    @property
    def per_epoch(self) -> int:
        return max(1, self.images // self.config.batch_size)

    @property
    def iterations(self) -> int:
        return self.per_epoch * self.config.epochs

    def factor(self, iteration: int) -> float:
        """The share of the initial learning rate at an iteration: a staircase."""
        epoch = iteration // self.per_epoch
        return float(self.config.decay ** (epoch // self.config.decay_epochs))


def pretrain(
    config: PretrainRecipe, data: Path, folder: RunFolder, pace: Pace, *, resume: bool, workers: int
) -> Path:
    """Train on `data/train`; returns the path of the backbone's file.

    `data/val`, if it exists, is evaluated after every epoch. `pace.stop` limits the
    run; the schedule follows from the recipe and the number of images.
    """
    world = folder.world
    train, judged = splits(data)
    schedule = Schedule(config, len(train))
    run = start(config, len(train.classes), world, schedule.iterations)
    if resume:
        folder.resume(run)
    share = Batches(
        run.iteration,
        pace.stop,
        config.batch_size,
        rank=world.rank,
        ranks=world.size,
        parts=config.accumulate,
    )

    def step(batch: Batch, weight: float) -> float:
        factor = schedule.factor(run.iteration)
        return train_step(
            run, batch, weight, factor=factor, loss=ClassLoss(), config=config, world=world
        )

    def after() -> bool:
        ended = run.iteration == schedule.iterations  # `keep` evaluates the last epoch
        if judged is not None and run.iteration % schedule.per_epoch == 0 and not ended:
            folder.write(run.iteration, **error_rates(run, judged, config, world))
        return False

    pictures = Pictures(train, Order(len(train), config.seed), config.image_size)
    with loading(pictures, share, workers) as batches:
        loop(run, batches, pace, folder, weigh=lambda b: len(b.labels), step=step, after=after)
    return keep(run, config, (train, judged), folder)


@torch.no_grad()
def error_rates(
    run: Run, judged: ImageFolder, config: PretrainRecipe, world: World
) -> dict[str, float]:
    """Top-1 and top-5 error (table 4), from 0 to 1; each process takes a part of the photos.

    With five classes or fewer there is no top-5 error: it would always be 0.
    """
    classes = len(judged.classes)
    net = Classifier(config.network, classes)
    net.load_state_dict(run.weights())
    net.to(world.device).eval()
    size = config.image_size
    centre = v2.Compose([v2.Resize(round(size * MARGIN)), v2.CenterCrop(size), v2.PILToTensor()])
    ranks = (1, 5) if classes > 5 else (1,)

    def mistakes() -> tuple[int, ...]:
        wrong = [0] * len(ranks)
        for index in range(world.rank, len(judged), world.size):
            image, label = judged[index]
            pixels = centre(image)[None].to(world.device, torch.float32)
            best = net(pixels)[0].topk(max(ranks)).indices.tolist()
            wrong = [w + (label not in best[:rank]) for w, rank in zip(wrong, ranks, strict=True)]
        return tuple(wrong)

    sums = world.sums(*world.together(mistakes))
    return {
        f"top{rank}_error": round(wrong / len(judged), 4)
        for rank, wrong in zip(ranks, sums, strict=True)
    }


def keep(
    run: Run,
    config: PretrainRecipe,
    data: tuple[ImageFolder, ImageFolder | None],
    folder: RunFolder,
) -> Path:
    """Write the backbone without its classifier; returns the path of the weights.

    Its JSON has the error rates on `val`, if that exists.
    """
    network, (train, judged) = config.network, data
    metrics: dict[str, float] = {}
    if judged is not None:
        metrics = error_rates(run, judged, config, folder.world)
        folder.write(run.iteration, **metrics)
        metrics |= {"images": len(judged), "classes": len(judged.classes)}
    card = BackboneCard(
        backbone=config.backbone,
        depth_multiplier=config.depth_multiplier,
        after_depthwise=config.after_depthwise,
        mean=network.mean,
        std=network.std,
        metrics=metrics,
        source=f"trained by model.pretrain on {len(train)} images of {len(train.classes)} classes",
    )
    prefix = "backbone."
    weights = {k[len(prefix) :]: v for k, v in run.weights().items() if k.startswith(prefix)}
    path, _ = checkpoint.paths(folder.path / NAME)
    folder.world.from_main(lambda: checkpoint.save(path, weights, card))
    return path


def read(backbone: str, overrides: list[str]) -> PretrainRecipe:
    """The paper's recipe for a backbone with `key=value` overrides; raises RecipeError."""
    table: dict[str, object] = {"backbone": backbone}
    recipe.apply(table, overrides)
    try:
        config = PretrainRecipe.model_validate(table)
        _ = config.network
    except ValidationError as error:
        raise RecipeError(mistakes(error, PretrainRecipe)) from None
    return config


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.pretrain xception_65 --data IMAGENET --out runs/x65",
    )
    p.add_argument("backbone", help="such as xception_65 or resnet_v1_101_beta")
    p.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with photos in train/CLASS/ and val/CLASS/",
    )
    add_run(p, "the backbone's file", workers=4, save_every=1000)
    add_overrides(p, "epochs=20", "PretrainRecipe in model/pretrain.py")
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    folder = run_folder(p, args)
    return command(lambda world: pretrain_from(args, folder, world), folder)


def pretrain_from(args: argparse.Namespace, directory: Path, world: World) -> Path:
    """Read recipe and data, then train."""
    config = read(args.backbone, args.overrides)
    check_shares(config, world)
    train, judged = splits(args.data)
    iterations = Schedule(config, len(train)).iterations
    world.from_main(lambda: expect_photos(judged))
    check_folder(directory, resume=args.resume is not None)
    pace = Pace(iterations, config.batch_size, args.save_every, args.log_every, config.max_skips)
    with locked(directory, world):
        check_folder(directory, resume=args.resume is not None)
        return pretrain(
            config,
            args.data,
            RunFolder(directory, world),
            pace,
            resume=args.resume is not None,
            workers=args.workers,
        )


script = memory.keeping_freed(main)


if __name__ == "__main__":
    raise SystemExit(script())
