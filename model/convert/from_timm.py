"""ImageNet backbones of timm: xception65/71, resnet50/101, tf_efficientnet_lite0/1/2.

timm's Xceptions are the published ones (activations and batch norm in the same
places, epsilon 1e-3), so only names change. Classifiers are left out. Mean and
std come from timm's default configurations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.convert import from_torchvision, state_dict
from model.convert.accounting import Converted, ConvertError, adopt
from model.convert.labels import backbone_card
from model.network.backbones.efficientnet_lite import MULTIPLIERS, stages
from model.network.config import REFERENCE_MEAN, REFERENCE_STD, ModelConfig
from model.network.deeplab import BACKBONES

SOURCE = "timm"
CLASSIFIERS = re.compile(r"^(head\.|classifier\.|conv_head\.|bn2\.)")
XCEPTION_BLOCKS = {"xception_65": 21, "xception_71": 23}
XCEPTION_PARTS = {"depthwise": "dw", "pointwise": "pw"}
# (convolution, batch norm) in a block with an expansion, and in the first block, which has none.
LITE_PARTS = {
    "expand": ("conv_pw", "bn1"),
    "depthwise": ("conv_dw", "bn2"),
    "project": ("conv_pwl", "bn3"),
}
LITE_FIRST_PARTS = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}


def convert(path: Path) -> Converted:
    """Read the state dict of a backbone; raises ConvertError."""
    source = state_dict.read(path)
    if "conv_stem.weight" in source:
        number = _lite_number(source, path)
        return _convert(
            f"efficientnet_lite{number}", lambda key: _lite_name(key, number), source, path
        )
    blocks = {key.split(".")[1] for key in source if re.match(r"blocks\.\d+\.stack\.", key)}
    for backbone, count in XCEPTION_BLOCKS.items():
        if len(blocks) == count:
            return _convert(backbone, _xception_name, source, path)
    return from_torchvision.resnet(source, path, SOURCE)


def _convert(
    backbone: str, name_of: Callable[[str], str], source: dict[str, Tensor], path: Path
) -> Converted:
    config = ModelConfig.model_validate(
        {"backbone": backbone, "mean": REFERENCE_MEAN, "std": REFERENCE_STD}
    )
    with torch.device("meta"):
        net = BACKBONES[backbone](config)
    kept = {key: value for key, value in source.items() if not CLASSIFIERS.match(key)}
    return Converted(adopt(net, name_of, kept), backbone_card(config, path, SOURCE))


def _xception_name(key: str) -> str:
    """`stages.3.convs.0.depthwise.bn.bias` -> `blocks.3.stack.conv1.bn_dw.bias`."""
    module, layer, leaf = key.rsplit(".", 2)
    if module.startswith("root."):
        return f"stem.{module.removeprefix('root.')}.{layer}.{leaf}"
    _, stage, *part = module.split(".")
    if part == ["shortcut"]:
        return f"blocks.{stage}.shortcut.{layer}.{leaf}"
    _, index, half = part
    return f"blocks.{stage}.stack.conv{int(index) + 1}.{layer}_{XCEPTION_PARTS[half]}.{leaf}"


def _lite_number(source: dict[str, Tensor], path: Path) -> int:
    """Which EfficientNet-Lite has these stages; raises ConvertError."""
    found = [_lite_stage(source, index) for index in range(len(stages(0)))]
    for number in range(len(MULTIPLIERS)):
        if found == [(stage.repeats, stage.outputs) for stage in stages(number)]:
            return number
    raise ConvertError(
        f"{path}: blocks and channels by stage are {found}; supported are "
        "tf_efficientnet_lite0, tf_efficientnet_lite1 and tf_efficientnet_lite2"
    )


def _lite_stage(source: dict[str, Tensor], stage: int) -> tuple[int, int]:
    """(blocks, output channels) of a stage."""
    blocks = {key.split(".")[2] for key in source if key.startswith(f"blocks.{stage}.")}
    project = f"blocks.{stage}.0.conv_pw{'l' if stage else ''}.weight"
    return len(blocks), len(source[project]) if project in source else 0


def _lite_name(key: str, number: int) -> str:
    """`blocks.1.expand.conv.weight` -> `blocks.1.0.conv_pw.weight`."""
    module, layer, leaf = key.rsplit(".", 2)
    if module == "stem":
        return f"{'conv_stem' if layer == 'conv' else 'bn1'}.{leaf}"
    _, block, part = module.split(".")
    stage, index = _lite_place(int(block), number)
    conv, norm = (LITE_FIRST_PARTS if block == "0" else LITE_PARTS)[part]
    return f"blocks.{stage}.{index}.{conv if layer == 'conv' else norm}.{leaf}"


def _lite_place(block: int, number: int) -> tuple[int, int]:
    """(stage, index within the stage) of a block that is numbered over all stages."""
    places = [(s, i) for s, stage in enumerate(stages(number)) for i in range(stage.repeats)]
    return places[block]
