"""The published weights that `model.weights get` takes, and those that it leaves out."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

TABLE = Path(__file__).parent / "catalogue.toml"


class Digest(NamedTuple):
    """A pinned digest; for torchvision only its first digits are known."""

    algorithm: str
    digits: str


class Weights(BaseModel):
    """A published file, and how its publisher describes it; the fields of catalogue.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    network: str
    dataset: Literal["voc", "cityscapes", "ade20k", "imagenet"]  # whose classes it has
    trained_on: str
    miou: str = ""
    url: str
    size: int
    exact_size: bool = False
    sha256: str = ""
    sha384: str = ""
    licence: str
    output_stride: Literal[8, 16, 32] = 16
    crop_size: tuple[int, int] = (513, 513)

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def digest(self) -> Digest | None:
        """Return what to compare the file with, or None."""
        found = {"sha384": self.sha384, "sha256": self.sha256}
        return next((Digest(name, digits) for name, digits in found.items() if digits), None)


class UnknownWeightsError(ValueError):
    """The name is unknown or not supported; the message says which."""


WEIGHTS = {
    name: Weights(name=name, **row)
    for name, row in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()
}

_DPC = "its head is the dense prediction cell, which this network does not have"
_V3 = "MobileNetV3 with its own head, which this network does not have"
_EDGE = "the backbone MobileNet-EdgeTPU, which this network does not have"
_8BIT = "it was trained with fake quantisation; take the network without `8bit`"
LEFT_OUT = {  # by the zoo's name
    "xception71_dpc_cityscapes_trainfine": _DPC,
    "xception71_dpc_cityscapes_trainval": _DPC,
    "mobilenetv3_large_cityscapes_trainfine": _V3,
    "mobilenetv3_small_cityscapes_trainfine": _V3,
    "EdgeTPU-DeepLab": _EDGE,
    "EdgeTPU-DeepLab-slim": _EDGE,
    "xception_41_imagenet": "the backbone Xception-41, which this network does not have",
    "mobilenetv2_coco_voc_trainaug_8bit": _8BIT,
    "mobilenetv2_dm05_coco_voc_trainaug_8bit": _8BIT,
}


def find(name: str) -> Weights:
    """Return the weights of that name; raises UnknownWeightsError."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    if name in LEFT_OUT:
        raise UnknownWeightsError(f"{name} is not converted: {LEFT_OUT[name]}")
    near = get_close_matches(name, WEIGHTS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UnknownWeightsError(
        f"{name!r} is no name of published weights: {hint}`python -m model.weights list` shows all"
    )
