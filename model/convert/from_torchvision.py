"""Convert torchvision's ResNets and MobileNetV3-Large, and its `deeplabv3_*` on them.

torchvision's DeepLabv3 is the paper's without the decoder, with four differences:
the ASPP concatenates the pooled feature last (its projection's input channels are
reordered here), one more 3x3 follows the ASPP, resizing does not align corners,
and the ResNet is the plain one at output stride 8 (MobileNetV3 at 16, with the same
rates). The last three are fields of our configuration. The auxiliary classifier is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.convert import mobilenet_v3, state_dict
from model.convert.accounting import Converted, ConvertError, adopt
from model.convert.labels import Labels, backbone_card, card
from model.network.config import PUBLISHED, ModelConfig
from model.network.deeplab import BACKBONES, DeepLabV3Plus

SOURCE = "torchvision"
MOBILENET_V3 = "mobilenet_v3_large"
CLASSES = "classifier.4.weight"
PROJECTION = "classifier.0.project.0.weight"
# models/segmentation/deeplabv3.py: rates 12, 24, 36 at the network's own output stride (where
# `atrous_rates` are those at 16), dropout 0.5.
RESNET = {"output_stride": 8, "atrous_rates": (6, 12, 18)}
MOBILENET = {"output_stride": 16, "atrous_rates": (12, 24, 36)}
HEAD = {
    "aspp_dropout": 0.5,
    "aspp_refine": True,
    "decoder": False,
    "align_corners": False,
}
MODULES = {
    "aspp.pooling.project": ("classifier.0.convs.4.1", "classifier.0.convs.4.2"),
    "aspp.project": ("classifier.0.project.0", "classifier.0.project.1"),
    "aspp.refine": ("classifier.1", "classifier.2"),
    **{
        f"aspp.branches.{index}": (
            f"classifier.0.convs.{index}.0",
            f"classifier.0.convs.{index}.1",
        )
        for index in range(4)
    },
}


def convert(
    path: Path,
    *,
    output_stride: int | None = None,
    crop_size: tuple[int, int] = (513, 513),
    labels: Labels | None = None,
) -> Converted:
    """Read the state dict of a backbone or a DeepLabv3; raises ConvertError."""
    source = state_dict.read(path)
    if PROJECTION not in source:
        backbone_of = mobilenet if "features.1.block.0.0.weight" in source else resnet
        return backbone_of(source, path, SOURCE)
    if CLASSES not in source:
        raise ConvertError(f"{CLASSES} is missing: not a deeplabv3 of torchvision's")
    on_mobilenet = "backbone.0.0.weight" in source
    _refuse_small(source, "backbone.")
    backbone = (
        MOBILENET_V3 if on_mobilenet else f"resnet{state_dict.resnet_depth(source, 'backbone.')}"
    )
    own = MOBILENET if on_mobilenet else RESNET
    settings = {**PUBLISHED[backbone], **HEAD, **own, "backbone": backbone, "crop_size": crop_size}
    settings["num_classes"] = source[CLASSES].shape[0]
    if output_stride is not None:
        settings["output_stride"] = output_stride
    config = ModelConfig.model_validate(settings)
    with torch.device("meta"):
        net = DeepLabV3Plus(config)
    kept = {key: value for key, value in source.items() if not key.startswith("aux_classifier.")}
    kept[PROJECTION] = _pooling_first(kept[PROJECTION], config.aspp_channels)
    named = mobilenet_v3.name if on_mobilenet else state_dict.resnet_name
    state = adopt(net, lambda key: _name(key, named), kept)
    return Converted(state, card(config, labels, path, SOURCE))


def resnet(source: dict[str, Tensor], path: Path, kind: str) -> Converted:
    """An ImageNet ResNet without its classifier, with torchvision's and timm's names."""
    kept = {key: value for key, value in source.items() if not key.startswith("fc.")}
    backbone = f"resnet{state_dict.resnet_depth(kept)}"
    config = ModelConfig.model_validate({**PUBLISHED[backbone], "backbone": backbone})
    with torch.device("meta"):
        net = BACKBONES[backbone](config)
    state = adopt(net, state_dict.resnet_name, kept)
    return Converted(state, backbone_card(config, path, kind))


def mobilenet(source: dict[str, Tensor], path: Path, kind: str) -> Converted:
    """An ImageNet MobileNetV3-Large without its classifier."""
    _refuse_small(source, "features.")
    kept = {key: value for key, value in source.items() if not key.startswith("classifier.")}
    config = ModelConfig.model_validate({**PUBLISHED[MOBILENET_V3], "backbone": MOBILENET_V3})
    with torch.device("meta"):
        net = BACKBONES[MOBILENET_V3](config)
    state = adopt(net, lambda key: f"features.{mobilenet_v3.name(key)}", kept)
    return Converted(state, backbone_card(config, path, kind))


def _refuse_small(source: dict[str, Tensor], prefix: str) -> None:
    """Raise ConvertError for MobileNetV3-Small, whose thirteenth part is its last convolution."""
    if f"{prefix}12.0.weight" in source:
        raise ConvertError("this is MobileNetV3-Small; only MobileNetV3-Large can be converted")


def _pooling_first(weight: Tensor, channels: int) -> Tensor:
    """Move the pooled feature's input channels from the end to the front."""
    return torch.cat([weight[:, -channels:], weight[:, :-channels]], dim=1)


def _name(key: str, of_backbone: Callable[[str], str]) -> str:
    if key.startswith("backbone."):
        return f"backbone.{of_backbone(key.removeprefix('backbone.'))}"
    if key.startswith("logits."):
        return key.replace("logits", "classifier.4")
    module, layer, leaf = key.rsplit(".", 2)
    conv, norm = MODULES[module]
    return f"{conv if layer == 'conv' else norm}.{leaf}"
