"""Check that a converted network segments a photo of a cat and a person.

The conversion has used all variables. It cannot detect numbers of another meaning or a wrong
order of channels. This check does: logits are then not finite, one class is everywhere, or the
mIoU on the photo's own classes is poor.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.checkpoint import BackboneCard
from model.convert.accounting import Converted
from model.network.config import ModelConfig
from model.network.deeplab import BACKBONES, DeepLabV3Plus
from model.network.layers import resize

FOLDER = Path(__file__).parent
VOID = 255
PLAUSIBLE = 0.5  # mIoU over the photo's classes; the published networks have 0.8 and more
# VOC's class in sample.png: its names in other data sets. ADE20K has few cats.
NAMES = {0: ("background",), 8: ("cat",), 15: ("person",)}


class SelfCheckError(ValueError):
    """A converted network does not work; the message says what was measured."""


class SelfCheck(NamedTuple):
    """The network's result on the photo."""

    miou: float | None  # None: the network has fewer than two of the photo's classes
    classes: tuple[str, ...]  # over which it is


def run(converted: Converted) -> SelfCheck:
    """Check a network or a backbone; raises SelfCheckError."""
    photo = np.asarray(Image.open(FOLDER / "sample.jpg").convert("RGB"))
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float()
    if isinstance(converted.card, BackboneCard):
        _require_finite(_features(converted, image), "features")
        return SelfCheck(None, ())
    net = DeepLabV3Plus(converted.card.model)
    net.load_state_dict(converted.state, strict=True)
    with torch.inference_mode():
        logits = net.eval()(image)
        _require_finite(logits, "logits")
        size = (photo.shape[0], photo.shape[1])
        logits = resize(logits, size, align_corners=net.config.align_corners)
    labels = logits[0].argmax(0).to(torch.uint8).numpy()
    return _judge(labels, converted.card.classes)


def _features(converted: Converted, image: Tensor) -> Tensor:
    """Return the last map of a backbone."""
    card = converted.card
    assert isinstance(card, BackboneCard)
    config = ModelConfig(backbone=card.backbone, depth_multiplier=card.depth_multiplier)
    net = BACKBONES[card.backbone](config)
    net.load_state_dict(converted.state, strict=True)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (card.mean, card.std))
    with torch.inference_mode():
        high: Tensor = net.eval()((image - mean) / std).high
    return high


def _require_finite(x: Tensor, what: str) -> None:
    if not bool(torch.isfinite(x).all()):
        raise SelfCheckError(
            f"the {what} of a photo are not all finite: these weights are unusable"
        )
    if float(x.std()) == 0.0:
        raise SelfCheckError(
            f"the {what} of a photo are the same everywhere: these weights are unusable"
        )


def _judge(labels: NDArray[np.uint8], classes: tuple[str, ...]) -> SelfCheck:
    """Return the mIoU over the classes that both the photo and the network have."""
    if len(np.unique(labels)) < 2:
        name = classes[int(labels.flat[0])]
        raise SelfCheckError(f"the whole photo is {name}: these weights do not segment")
    truth = np.asarray(Image.open(FOLDER / "sample.png"))
    known = {
        truth_id: classes.index(name)
        for truth_id, names in NAMES.items()
        for name in names
        if name in classes
    }
    if len(known) < len(NAMES):  # Cityscapes and ADE20K: other scenes, other classes
        return SelfCheck(None, ())
    counted = truth != VOID
    ious = [_iou(truth[counted] == a, labels[counted] == b) for a, b in known.items()]
    miou = float(np.mean(ious))
    if miou < PLAUSIBLE:
        raise SelfCheckError(
            f"mIoU on a photo of a cat and a person is {miou:.2f}, {PLAUSIBLE} at least is "
            "plausible: these weights do not segment it"
        )
    return SelfCheck(miou, tuple(classes[index] for index in known.values()))


def _iou(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    union = int((truth | found).sum())
    return int((truth & found).sum()) / union if union else 0.0
