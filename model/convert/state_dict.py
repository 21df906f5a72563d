"""Read PyTorch state dicts; the names that torchvision and timm share for a ResNet."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.convert.accounting import ConvertError, listed

BACKBONE = (
    "its head is built otherwise; the ResNet in it is torchvision's: save "
    "{k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')} "
    "and convert that"
)
LRASPP = "its head is no DeepLab; torchvision's deeplabv3_mobilenet_v3_large can be converted"
ENCODER = BACKBONE.replace("backbone", "encoder")
RESNET = r"(backbone|encoder)\.layer\d\."  # the parts of a ResNet that torchvision names so
SERVED = "To serve it as it is, export it to ONNX and add its classes with `python -m export.adopt`"
# How training scripts nest one; model_state: VainF/DeepLabV3Plus-Pytorch.
WRAPPERS = ("state_dict_ema", "state_dict", "model_state", "model")
# Prefixes that frameworks add to every name: DataParallel, Lightning, torch.compile.
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
ELSEWHERE = (
    "it is built otherwise; docs/published-weights.md lists weights that can be converted, and "
    "`python -m model.train --list` presets that start from them"
)
SAVE = "Where it was made, save torch.save(net.state_dict(), ...)"
# NumPy's numbers, such as the best score that VainF's and jfzhang95's scripts keep beside the
# network; under the name that NumPy had for them before version 2 too.
NUMBERS: tuple[Any, ...] = (
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
    (scalar, "numpy._core.multiarray.scalar"),
    (scalar, "numpy.core.multiarray.scalar"),
)
TORCH_FILES = (b"PK\3\4", b"\x80")  # a zip archive, or a pickle of PyTorch before 1.6
# Networks of other projects, by a key that only they have, and what can be taken of them.
SMP = "a network of segmentation_models_pytorch"
FOREIGN = (
    (r"segformer\.", "Hugging Face's SegFormer", ELSEWHERE),
    (r"decode_head\.", "a network of mmsegmentation", ELSEWHERE),
    (r"encoder\.(layer\d|conv1)\.", SMP, ENCODER),
    (r"encoder\.", SMP, ELSEWHERE),
    (r"classifier\.(aspp|classifier)\.", "a network of VainF/DeepLabV3Plus-Pytorch", BACKBONE),
    (r"aspp\.aspp\d\.", "a network of jfzhang95/pytorch-deeplab-xception", BACKBONE),
    (r"classifier\.(cbr|scale)\.", "torchvision's LRASPP", LRASPP),
    # DeepLabv3 has its ASPP at 0 and a convolution at 1, MobileNetV3's classifier no batch norm.
    (r"classifier\.1\.running_mean", "torchvision's FCN", BACKBONE),
)


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a torch.save file, batch counters left out.

    A torch file is read with `weights_only`, so no pickled code runs. Raises ConvertError.
    """
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except pickle.UnpicklingError as error:
        raise ConvertError(_on_pickle(path, str(error))) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ConvertError(f"{path} is not a state dict: {error}") from None
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(torch.is_tensor(v) for v in found.values()):
        raise ConvertError(f"{path} is not a state dict: save net.state_dict(), not the network")
    if not found:
        raise ConvertError(f"{path} holds no tensors: save net.state_dict()")
    state = {key: value for key, value in found.items() if not key.endswith("num_batches_tracked")}
    prefix = _prefix(state)
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    for pattern, project, advice in FOREIGN:
        if any(re.match(pattern, key) for key in state):
            if not any(re.match(RESNET, key) for key in state) and advice in (BACKBONE, ENCODER):
                advice = ELSEWHERE  # noqa: PLW2901 - on a backbone that is built otherwise too
            exact = re.sub(r"'(backbone|encoder)\.'", rf"'{prefix}\1.'", advice)
            raise ConvertError(f"{path} holds {project}, which is not converted: {exact}. {SERVED}")
    return state


def _prefix(keys: Iterable[str]) -> str:
    """Return the prefix that a framework added to all names, such as `module.`."""
    names, prefix = set(keys), ""
    while names and (
        found := next((p for p in PREFIXES if all(name.startswith(p) for name in names)), "")
    ):
        prefix += found
        names = {name.removeprefix(found) for name in names}
    return prefix


def _load(path: Path) -> object:
    """Unpickle nothing but tensors, plain values and a script's options, which do no harm."""
    with path.open("rb") as file:
        start = file.read(40)
    if not start.startswith(TORCH_FILES):
        raise ConvertError(
            f"{path} is no file of PyTorch's: it begins with {start!r}; a web page, or a pointer "
            "of Git LFS, may have been saved in its place: download it again"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ConvertError(f"{path} is TorchScript, code and all. {SAVE}")
    with torch.serialization.safe_globals([argparse.Namespace, *NUMBERS]):
        return torch.load(path, weights_only=True, map_location="cpu")


def _on_pickle(path: Path, says: str) -> str:
    """Describe what PyTorch refused to unpickle, and what to save instead."""
    found = re.search(r"GLOBAL ([\w.]+)", says)
    what = f" (it holds {found[1]})" if found else ""
    return (
        f"{path} holds more than tensors{what}, such as a whole network, and is not unpickled: "
        f"that could run any code. {SAVE}"
    )


def resnet_depth(keys: Iterable[str], prefix: str = "") -> int:
    """50 or 101, by the number of units in the third layer; raises ConvertError."""
    units = {
        int(match[1])
        for key in keys
        if (match := re.match(rf"{re.escape(prefix)}layer3\.(\d+)\.", key))
    }
    depths = {6: 50, 23: 101}
    if not units:
        raise ConvertError(
            "the file holds no ResNet as torchvision and timm name it; its tensors begin with "
            f"{listed({key.split('.')[0] for key in keys})}"
        )
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
