"""Read PyTorch state dicts; the names that torchvision and timm share for a ResNet."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.convert.accounting import ConvertError, listed

WRAPPERS = ("state_dict_ema", "state_dict", "model")  # how training scripts nest one


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a torch.save file, batch counters left out.

    A torch file is read with `weights_only`, so no pickled code runs. Raises ConvertError.
    """
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConvertError(f"{path} is not a state dict: {error}") from None
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(torch.is_tensor(v) for v in found.values()):
        raise ConvertError(f"{path} is not a state dict: save net.state_dict(), not the network")
    return {
        key.removeprefix("module."): value
        for key, value in found.items()
        if not key.endswith("num_batches_tracked")
    }


def resnet_depth(keys: Iterable[str], prefix: str = "") -> int:
    """50 or 101, by the number of units in the third layer; raises ConvertError."""
    units = {
        int(match[1])
        for key in keys
        if (match := re.match(rf"{re.escape(prefix)}layer3\.(\d+)\.", key))
    }
    depths = {6: 50, 23: 101}
    if len(units) not in depths:
        raise ConvertError(
            f"a ResNet with {len(units)} units in layer3 is not supported: resnet50 has 6, "
            f"resnet101 23 (found {listed({key.split('.')[0] for key in keys})})"
        )
    return depths[len(units)]


def resnet_name(key: str) -> str:
    """`blocks.0.1.conv2.bn.weight` -> `layer1.1.bn2.weight`, as torchvision and timm name it."""
    module, layer, leaf = key.rsplit(".", 2)
    if module == "root":
        return f"{layer}1.{leaf}"
    _, block, unit, part = module.split(".")
    where = f"layer{int(block) + 1}.{unit}"
    if part == "shortcut":
        return f"{where}.downsample.{'0' if layer == 'conv' else '1'}.{leaf}"
    return f"{where}.{layer}{part.removeprefix('conv')}.{leaf}"
