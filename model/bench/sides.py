"""One training iteration of this project, and of the loops that it is compared with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.data.dataset import VOC_CLASSES, VOID
from model.data.loader import Batch
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import resize
from model.train.assembly import start
from model.train.distributed import World
from model.train.loss import PixelLoss
from model.train.recipe import Recipe
from model.train.step import train_step

Step = Callable[[], object]
Side = Callable[[Recipe, Batch, World], tuple[nn.Module, Step]]

SEPARABLE = {"aspp_separable": True, "decoder_separable": True}
# torchvision's DeepLabv3: no decoder, output stride 8, one more 3x3 behind the ASPP.
DEEPLABV3 = {"decoder": False, "output_stride": 8, "aspp_refine": True, "aspp_dropout": 0.5}


class Contest(NamedTuple):
    """Our network and its rival."""

    model: dict[str, Any]  # of the recipe
    theirs: Side
    rival: str


def this_machine() -> World:
    """The GPU, or the CPU of a machine without one."""
    return World(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def recipe_of(model: dict[str, Any], args: argparse.Namespace) -> Recipe:
    """A training with a network of ours."""
    return Recipe.model_validate(
        {
            "model": model,
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


def smp(encoder: str) -> Side:
    """segmentation_models_pytorch's network in the usual loop of its examples."""

    def side(config: Recipe, batch: Batch, world: World) -> tuple[nn.Module, Step]:
        import segmentation_models_pytorch  # noqa: PLC0415 - an extra of the developers

        net = segmentation_models_pytorch.DeepLabV3Plus(
            encoder_name=encoder,
            encoder_weights=None,
            encoder_output_stride=16,
            decoder_atrous_rates=config.model.rates,
            classes=config.model.num_classes,
        )
        return net, usual_step(net, net, config, batch, world)

    return side


def torchvision_loop(config: Recipe, batch: Batch, world: World) -> tuple[nn.Module, Step]:
    """Our own network in torchvision's loop."""
    net = DeepLabV3Plus(config.model)

    def forward(images: Tensor) -> Tensor:
        return resize(net(images), (images.shape[2], images.shape[3]))

    return net, usual_step(net, forward, config, batch, world, normalised=False)


def torchvision_net(config: Recipe, batch: Batch, world: World) -> tuple[nn.Module, Step]:
    """torchvision's DeepLabv3 on ResNet-50 in torchvision's loop."""
    from torchvision.models.segmentation import deeplabv3_resnet50  # noqa: PLC0415 - takes seconds

    net = deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=config.model.num_classes, aux_loss=False
    )

    def forward(images: Tensor) -> Tensor:
        return net(images)["out"]  # type: ignore[no-any-return]

    return net, usual_step(net, forward, config, batch, world)


def usual_step(
    net: nn.Module,
    forward: Callable[[Tensor], Tensor],
    config: Recipe,
    batch: Batch,
    world: World,
    *,
    normalised: bool = True,
) -> Step:
    """One iteration as in torchvision's references/segmentation/train.py.

    The loop of segmentation_models_pytorch's examples does the same in the same order.
    `forward` gives logits at the labels' size.
    """
    net.to(world.device).train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.rate, momentum=config.momentum, weight_decay=1e-4
    )
    kind = torch.float16 if config.precision == "fp16" else torch.bfloat16
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.model.mean, config.model.std))

    def step() -> float:
        images = batch.images.float()
        images = ((images - mean) / std if normalised else images).to(world.device)
        labels = batch.labels.long().to(world.device)
        with torch.autocast(world.device.type, kind, enabled=config.precision != "fp32"):
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=VOID)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return float(loss.detach())

    return step


# Networks of ours and the rival of each; the heads are of one kind.
CONTESTS = {
    "light": Contest(
        {"backbone": "efficientnet_lite0", **SEPARABLE},
        smp("timm-tf_efficientnet_lite0"),
        "segmentation_models_pytorch",
    ),
    "resnet101": Contest(
        {"backbone": "resnet101", **SEPARABLE}, smp("resnet101"), "segmentation_models_pytorch"
    ),
    "light-loop": Contest(
        {"backbone": "efficientnet_lite0", **SEPARABLE},
        torchvision_loop,
        "our network in torchvision's loop",
    ),
    "resnet50-os8": Contest(
        {"backbone": "resnet50", **DEEPLABV3}, torchvision_net, "torchvision's network and loop"
    ),
}
