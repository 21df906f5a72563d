"""Checkpoints of the official implementation (research/deeplab of tensorflow/models).

The variables show what the network consists of: backbone, number of classes,
decoder, separable convolutions, number of atrous branches. What they do not show
(multi-grid, rates, output stride, crop size) takes the published defaults.
TensorFlow's kernels are HWIO, depthwise ones HWC1; ours are OIHW and C1HW.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from model.convert.accounting import Converted, ConvertError, adopt, listed
from model.convert.labels import Labels, backbone_card, card
from model.convert.variables import Variables, read
from model.network.backbones.mobilenet_v2 import STAGES, STEM, scaled
from model.network.config import PUBLISHED, ModelConfig
from model.network.deeplab import BACKBONES, DeepLabV3Plus
from model.pydantic_errors import mistakes

# Bookkeeping of optimisers and moving averages, beside the variables they belong to.
BOOKKEEPING = re.compile(
    r"(^|/)global_step$|(^|/)beta[12]_power(_\d+)?$"
    r"|/(Momentum|Adam|RMSProp|Adagrad)(_\d+)?$|/ExponentialMovingAverage$"
)
FAKE_QUANT = re.compile(r"(^|/)(weights_quant|act_quant|\w*quant\w*)/(\w+/)*(min|max)(_\d+)?$")
# Classifiers of ImageNet checkpoints: SCOPE/logits and MobileNetV2's last 1x1.
CLASSIFIER = re.compile(r"^(resnet_v1_\d+|xception_\d+)/logits/|^MobilenetV2/(Conv_1|Logits)/")
HEAD = re.compile(r"^(aspp\d+(_\w+)?|image_pooling|concat_projection|decoder)/")
CLASSES = "logits/semantic/weights"
ROOTS = {  # a variable that only this backbone has
    "resnet_v1_50/conv1_1/weights": "resnet_v1_50_beta",
    "resnet_v1_101/conv1_1/weights": "resnet_v1_101_beta",
    "xception_65/entry_flow/conv1_1/weights": "xception_65",
    "xception_71/entry_flow/conv1_1/weights": "xception_71",
    "MobilenetV2/Conv/weights": "mobilenet_v2",
}
LEAVES = {
    "conv.weight": "weights",
    "bn.weight": "BatchNorm/gamma",
    "bn.bias": "BatchNorm/beta",
    "bn.running_mean": "BatchNorm/moving_mean",
    "bn.running_var": "BatchNorm/moving_variance",
}
# Entry, middle and exit flow: how many modules the entry has.
ENTRY_MODULES = {"xception_65": 3, "xception_71": 5}
MIDDLE_MODULES = 16


SOURCE = "TensorFlow"

Shapes = Mapping[str, tuple[int, ...]]


class ConversionOptions(NamedTuple):
    """Options that the variables do not show; None takes the published default."""

    output_stride: int = 16
    crop_size: tuple[int, int] = (513, 513)
    multi_grid: tuple[int, ...] | None = None
    atrous_rates: tuple[int, ...] | None = None
    labels: Labels | None = None


def convert(path: Path, options: ConversionOptions) -> Converted:
    """Read a checkpoint's prefix, a frozen graph, a TFLite file or an .npz of variables.

    Raises ConvertError for unknown backbones and for variables missing or left over.
    """
    return convert_variables(read(path), options, path)


def convert_variables(variables: Variables, options: ConversionOptions, path: Path) -> Converted:
    """Convert variables in memory; `path` is the file they came from."""
    variables = _of_one_clone(variables)
    variables = {name: value for name, value in variables.items() if not BOOKKEEPING.search(name)}
    quantized = [name for name in variables if FAKE_QUANT.search(name)]
    if quantized:
        raise ConvertError(
            f"{path} was trained with fake quantisation ({len(quantized)} variables such as "
            f"{quantized[0]}), which has no counterpart here: convert the checkpoint that it was "
            "fine-tuned from, and export it with --precision int8"
        )
    if CLASSES not in variables:
        return _backbone_only(variables, path)
    config = infer(variables, options)
    with torch.device("meta"):
        net = DeepLabV3Plus(config)
    state = adopt(net, Names(config).of, _to_torch(variables))
    return Converted(state, card(config, options.labels, path, SOURCE))


def _of_one_clone(variables: Variables) -> Variables:
    """The variables without `clone_0/`, the scope of the first GPU; copies of others left out."""
    if not any(name.startswith("clone_0/") for name in variables):
        return variables
    return {
        name.removeprefix("clone_0/"): value
        for name, value in variables.items()
        if not re.match(r"clone_[1-9]\d*/", name)
    }


def _backbone_only(variables: Variables, path: Path) -> Converted:
    """Convert the backbone of a checkpoint to start from: no classifier, or one of ImageNet.

    A backbone that was trained on COCO also has the rest of the head, which is left out.
    """
    variables = {
        name: value
        for name, value in variables.items()
        if not CLASSIFIER.match(name) and not HEAD.match(name)
    }
    backbone = _backbone(variables)
    config = ModelConfig.model_validate(
        {"backbone": backbone, "depth_multiplier": _depth_multiplier(backbone, variables)}
    )
    with torch.device("meta"):
        net = BACKBONES[backbone](config)
    names = Names(config)
    state = adopt(net, lambda key: names.of(f"backbone.{key}"), _to_torch(variables))
    return Converted(state, backbone_card(config, path, SOURCE))


def _backbone(variables: Variables) -> str:
    for name, backbone in ROOTS.items():
        if name in variables:
            return backbone
    scopes = {name.split("/")[0] for name in variables}
    raise ConvertError(
        f"backbone is unknown; top-level scopes are {listed(scopes)}; "
        f"supported backbones: {', '.join(ROOTS.values())}"
    )


def _to_torch(variables: Variables) -> dict[str, Tensor]:
    """The variables with their kernels in PyTorch's layout."""
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in variables.items()}
    for name, value in tensors.items():
        if name.endswith("/depthwise_weights"):
            tensors[name] = value.permute(2, 3, 0, 1)  # HWC1 -> C1HW
        elif value.ndim == 4:
            tensors[name] = value.permute(3, 2, 0, 1)  # HWIO -> OIHW
    return tensors


def infer(variables: Variables, options: ConversionOptions) -> ModelConfig:
    """The configuration that has these variables; raises ConvertError naming a wrong option."""
    backbone = _backbone(variables)
    shapes = {name: value.shape for name, value in variables.items()}
    settings: dict[str, Any] = {
        **PUBLISHED[backbone],
        "backbone": backbone,
        "num_classes": shapes[CLASSES][3],
        "output_stride": options.output_stride,
        "crop_size": options.crop_size,
        "depth_multiplier": _depth_multiplier(backbone, variables),
        **_aspp(shapes, options),
        **_decoder(shapes),
    }
    if options.multi_grid is not None:
        settings["multi_grid"] = options.multi_grid
    try:
        return ModelConfig.model_validate(settings)
    except ValidationError as error:
        raise ConvertError(mistakes(error)) from None


def _depth_multiplier(backbone: str, variables: Variables) -> float:
    """The simplest depth multiplier that gives all widths of a MobileNetV2; raises ConvertError."""
    if backbone != "mobilenet_v2":
        return 1.0
    widths = [STEM] + [stage.outputs for stage in STAGES for _ in range(stage.repeats)]
    names = ["MobilenetV2/Conv/weights", "MobilenetV2/expanded_conv/project/weights"]
    names += [f"MobilenetV2/expanded_conv_{block}/project/weights" for block in range(1, 17)]
    found = [variables[name].shape[3] if name in variables else 0 for name in names]
    for digits in range(4):
        multiplier = round(found[-1] / widths[-1], digits)
        if multiplier and [scaled(width, multiplier) for width in widths] == found:
            return multiplier
    raise ConvertError(f"MobileNetV2 of widths {found} is no depth multiple of {widths}")


def _aspp(shapes: Shapes, options: ConversionOptions) -> dict[str, Any]:
    branches = {int(m[1]) for name in shapes if (m := re.match(r"aspp(\d+)(_depthwise)?/", name))}
    atrous = len(branches - {0})
    rates = (6, 12, 18) if options.atrous_rates is None else options.atrous_rates
    if atrous == 0 and options.atrous_rates is None:
        rates = ()
    if len(rates) != atrous:
        raise ConvertError(
            f"atrous_rates={rates} has {len(rates)} rates, the variables have {atrous} atrous "
            f"branches; give --atrous-rates with {atrous}, as at output stride 16"
        )
    if "aspp0/weights" not in shapes:
        raise ConvertError("aspp0/weights is missing: networks without an ASPP are not supported")
    return {
        "aspp_channels": shapes["aspp0/weights"][3],
        "atrous_rates": rates,
        "aspp_separable": "aspp1_depthwise/depthwise_weights" in shapes,
        "image_pooling": "image_pooling/weights" in shapes,
    }


def _decoder(shapes: Shapes) -> dict[str, Any]:
    reduce = "decoder/feature_projection0/weights"
    if reduce not in shapes:
        return {"decoder": False}
    separable = "decoder/decoder_conv0_depthwise/depthwise_weights" in shapes
    pattern = (
        r"decoder/decoder_conv\d+_pointwise/weights"
        if separable
        else r"decoder/decoder_conv0/decoder_conv0_\d+/weights"
    )
    convs = [shape for name, shape in shapes.items() if re.fullmatch(pattern, name)]
    if not convs:
        raise ConvertError(f"{reduce} is there, but no variable of the decoder's convolutions")
    first = shapes["decoder/decoder_conv0_depthwise/depthwise_weights"] if separable else convs[0]
    return {
        "decoder": True,
        "decoder_separable": separable,
        "low_level_channels": shapes[reduce][3],
        "decoder_channels": convs[0][3],
        "decoder_convs": len(convs),
        "decoder_kernel": first[0],
    }


class Names:
    """TensorFlow's name for a key of our state dict."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.scope = config.backbone.removesuffix("_beta")

    def of(self, key: str) -> str:
        """`aspp.branches.1.conv.weight` -> `aspp1/weights`."""
        if key in ("logits.weight", "logits.bias"):
            return CLASSES if key.endswith("weight") else "logits/semantic/biases"
        module, layer, leaf = key.rsplit(".", 2)
        scope = self._scope(module)
        if layer == "conv" and scope.endswith("depthwise"):
            return f"{scope}/depthwise_weights"
        return f"{scope}/{LEAVES[f'{layer}.{leaf}']}"

    def _scope(self, module: str) -> str:
        part, _, rest = module.partition(".")
        if part == "aspp":
            return self._aspp(rest)
        if part == "decoder":
            return self._decoder(rest)
        if self.scope.startswith("resnet"):
            return self._resnet(rest.split("."))
        if self.scope.startswith("xception"):
            return self._xception(rest.split("."))
        return self._mobilenet(rest.split("."))

    def _aspp(self, module: str) -> str:
        if not module.startswith("branches."):
            return {"pooling.project": "image_pooling", "project": "concat_projection"}[module]
        _, branch, *half = module.split(".")
        return f"aspp{branch}{_half(half)}"

    def _decoder(self, module: str) -> str:
        if module == "conv2.reduce":
            return "decoder/feature_projection0"
        _, _, index, *half = module.split(".")
        if half:
            return f"decoder/decoder_conv{index}{_half(half)}"
        return f"decoder/decoder_conv0/decoder_conv0_{int(index) + 1}"

    def _resnet(self, module: list[str]) -> str:
        if module[0] == "root":
            return f"{self.scope}/conv1_{int(module[1]) + 1}"
        _, block, unit, part = module
        return f"{self.scope}/block{int(block) + 1}/unit_{int(unit) + 1}/bottleneck_v1/{part}"

    def _xception(self, module: list[str]) -> str:
        if module[0] == "root":
            return f"{self.scope}/entry_flow/conv1_{int(module[1]) + 1}"
        _, stage, *part = module
        where = f"{self.scope}/{self._flow(int(stage))}/xception_module"
        if part == ["shortcut"]:
            return f"{where}/shortcut"
        _, index, half = part
        return f"{where}/separable_conv{int(index) + 1}_{half}"

    def _flow(self, stage: int) -> str:
        entry = ENTRY_MODULES[self.scope]
        if stage < entry:
            return f"entry_flow/block{stage + 1}/unit_1"
        if stage < entry + MIDDLE_MODULES:
            return f"middle_flow/block1/unit_{stage - entry + 1}"
        return f"exit_flow/block{stage - entry - MIDDLE_MODULES + 1}/unit_1"

    def _mobilenet(self, module: list[str]) -> str:
        if module == ["stem"]:
            return "MobilenetV2/Conv"
        _, block, part = module
        return f"MobilenetV2/expanded_conv{'' if block == '0' else f'_{block}'}/{part}"


def _half(index: list[str]) -> str:
    """A separable convolution is a sequence of two: depthwise, pointwise."""
    return {"0": "_depthwise", "1": "_pointwise"}[index[0]] if index else ""
