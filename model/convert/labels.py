"""Class names and colours for published weights, which come without them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from model.checkpoint import BackboneCard, Card
from model.convert.accounting import ConvertError
from model.data import cityscapes
from model.data.dataset import VOC_CLASSES, Color, voc_palette
from model.network.config import ModelConfig
from model.text import TextError, read_text


class Labels(NamedTuple):
    """One name and one colour per class."""

    classes: tuple[str, ...]
    palette: tuple[Color, ...]


def _parsed(text: str) -> Labels:
    """One class a line, `name` or `name R G B`, colours by default VOC's."""
    lines = [line for line in text.splitlines() if line.strip()]
    defaults = voc_palette(len(lines))
    rows = [_row(line, color) for line, color in zip(lines, defaults, strict=True)]
    return Labels(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def _row(line: str, default_color: Color) -> tuple[str, Color]:
    words = line.split()
    if len(words) < 4 or not all(word.isdecimal() for word in words[-3:]):
        return line.strip(), default_color
    red, green, blue = (int(word) for word in words[-3:])
    if max(red, green, blue) > 255:
        raise ConvertError(f"classes: {line!r} has a colour above 255; write name R G B")
    return " ".join(words[:-3]), (red, green, blue)


VOC = Labels(VOC_CLASSES, voc_palette(len(VOC_CLASSES)))
CITYSCAPES = Labels(cityscapes.CLASSES, cityscapes.PALETTE)
# The 150 classes of its scene parsing benchmark; the reference ignores 0, unlabelled.
ADE20K = _parsed((Path(__file__).parent / "ade20k.txt").read_text(encoding="utf-8"))
KNOWN = {"voc": VOC, "cityscapes": CITYSCAPES, "ade20k": ADE20K}


def default(classes: int) -> Labels:
    """Return VOC's names for 21 classes, Cityscapes' for 19, ADE20K's for 151, else numbers."""
    for labels in KNOWN.values():
        if len(labels.classes) == classes:
            return labels
    return Labels(tuple(f"class {index}" for index in range(classes)), voc_palette(classes))


def read(name: str) -> Labels:
    """`voc`, `cityscapes`, `ade20k`, or a text file with a class per line: `name` or `name R G B`.

    Raises ConvertError naming the file, or the line that does not fit.
    """
    if name in KNOWN:
        return KNOWN[name]
    path = Path(name)
    if not path.is_file():
        raise ConvertError(f"classes={name!r} is neither a file nor one of {', '.join(KNOWN)}")
    try:
        return _parsed(read_text(path))
    except TextError as error:
        raise ConvertError(f"classes: {error}") from None


def card(config: ModelConfig, labels: Labels | None, path: Path, kind: str) -> Card:
    """The description of a converted network; raises ConvertError if the labels do not fit."""
    labels = default(config.num_classes) if labels is None else labels
    if len(labels.classes) != config.num_classes:
        raise ConvertError(
            f"classes: {len(labels.classes)} names against weights for {config.num_classes} "
            f"classes in {path}; give {config.num_classes} names"
        )
    return Card(
        model=config,
        classes=labels.classes,
        palette=labels.palette,
        source=f"converted from {path.name} ({kind})",
    )


def backbone_card(config: ModelConfig, path: Path, kind: str) -> BackboneCard:
    """The description of a converted backbone."""
    return BackboneCard(
        backbone=config.backbone,
        depth_multiplier=config.depth_multiplier,
        mean=config.mean,
        std=config.std,
        source=f"converted from {path.name} ({kind})",
    )
