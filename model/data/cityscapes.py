"""Cityscapes (https://www.cityscapes-dataset.com): its label table and where its files lie.

The masks `*_labelIds.png` hold label ids 0-33; networks are trained on the 19
train ids (`*_labelTrainIds.png`); submissions hold label ids again. The table
is that of the official scripts (mcordts/cityscapesScripts, helpers/labels.py).

Splits have the reference's names: `train`, `val`, `test` and `trainval` have fine
masks, `train_extra` coarse ones; `train_coarse` and `trainval_coarse` are the fine
split plus train_extra. torchvision's Cityscapes has no train ids, cannot mix fine
and coarse masks, and needs polygons and colours on disk, so this module lists the
files itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from model.data.pairs import (
    VOID,
    CodedMask,
    Coding,
    Color,
    Dataset,
    DatasetError,
    Mask,
    Pair,
    home,
)


class Label(NamedTuple):
    """One row of the official table; `train_id` is 255 for labels that are ignored."""

    name: str
    id: int
    train_id: int
    color: Color


# The official table's license plate, id -1, is never drawn into a mask and left out.
LABELS = (
    Label("unlabeled", 0, VOID, (0, 0, 0)),
    Label("ego vehicle", 1, VOID, (0, 0, 0)),
    Label("rectification border", 2, VOID, (0, 0, 0)),
    Label("out of roi", 3, VOID, (0, 0, 0)),
    Label("static", 4, VOID, (0, 0, 0)),
    Label("dynamic", 5, VOID, (111, 74, 0)),
    Label("ground", 6, VOID, (81, 0, 81)),
    Label("road", 7, 0, (128, 64, 128)),
    Label("sidewalk", 8, 1, (244, 35, 232)),
    Label("parking", 9, VOID, (250, 170, 160)),
    Label("rail track", 10, VOID, (230, 150, 140)),
    Label("building", 11, 2, (70, 70, 70)),
    Label("wall", 12, 3, (102, 102, 156)),
    Label("fence", 13, 4, (190, 153, 153)),
    Label("guard rail", 14, VOID, (180, 165, 180)),
    Label("bridge", 15, VOID, (150, 100, 100)),
    Label("tunnel", 16, VOID, (150, 120, 90)),
    Label("pole", 17, 5, (153, 153, 153)),
    Label("polegroup", 18, VOID, (153, 153, 153)),
    Label("traffic light", 19, 6, (250, 170, 30)),
    Label("traffic sign", 20, 7, (220, 220, 0)),
    Label("vegetation", 21, 8, (107, 142, 35)),
    Label("terrain", 22, 9, (152, 251, 152)),
    Label("sky", 23, 10, (70, 130, 180)),
    Label("person", 24, 11, (220, 20, 60)),
    Label("rider", 25, 12, (255, 0, 0)),
    Label("car", 26, 13, (0, 0, 142)),
    Label("truck", 27, 14, (0, 0, 70)),
    Label("bus", 28, 15, (0, 60, 100)),
    Label("caravan", 29, VOID, (0, 0, 90)),
    Label("trailer", 30, VOID, (0, 0, 110)),
    Label("train", 31, 16, (0, 80, 100)),
    Label("motorcycle", 32, 17, (0, 0, 230)),
    Label("bicycle", 33, 18, (119, 11, 32)),
)
CLASSES = tuple(label.name for label in LABELS if label.train_id != VOID)
PALETTE = tuple(label.color for label in LABELS if label.train_id != VOID)
# LABEL_IDS[train id] is the label id for submissions.
LABEL_IDS = tuple(label.id for label in LABELS if label.train_id != VOID)

PLACES = ("", "cityscapes")  # below what --data names
MARK = "leftImg8bit"
SPLITS = {
    "train": ("train",),
    "val": ("val",),
    "test": ("test",),
    "trainval": ("train", "val"),
    "train_extra": ("train_extra",),
    "train_coarse": ("train", "train_extra"),
    "trainval_coarse": ("train", "val", "train_extra"),
}
CODING = Coding.of(
    {label.id: label.train_id for label in LABELS},
    frozenset({VOID} | {label.id for label in LABELS if label.train_id == VOID}),
)
VOID_COLORS = tuple(
    sorted({label.color for label in LABELS if label.train_id == VOID} - {*PALETTE})
)


def find(root: Path, split: str) -> Dataset:
    """List a split below `root` or `root/cityscapes`, photo by photo; the masks may be missing."""
    if split not in SPLITS:
        raise DatasetError(f"cityscapes has no split {split!r}; choose one of {', '.join(SPLITS)}")
    base = home(root, PLACES, MARK)
    pairs = tuple(pair for part in SPLITS[split] for pair in _pairs(base, part))
    return Dataset("cityscapes", split, pairs, CLASSES, PALETTE, void_colors=VOID_COLORS)


def _pairs(base: Path, part: str) -> list[Pair]:
    """One folder of photos, by city and name; `train_extra` has coarse masks alone."""
    kind = "gtCoarse" if part == "train_extra" else "gtFine"
    photos, ending = base / "leftImg8bit" / part, "_leftImg8bit.png"
    if not photos.is_dir():
        raise DatasetError(
            f"{photos} does not exist; "
            "`python -m model.data prepare cityscapes` tells how to get it"
        )
    pairs = []
    for photo in sorted(photos.glob(f"*/*{ending}")):
        name = photo.name.removesuffix(ending)
        stem = base / kind / part / photo.parent.name / f"{name}_{kind}"
        pairs.append(Pair(name, photo, _mask(stem)))
    return pairs


def _mask(stem: Path) -> Mask:
    """The published file of label ids, or the train ids where only those are there."""
    label_ids, train_ids = (
        stem.with_name(f"{stem.name}_{kind}.png") for kind in ("labelIds", "labelTrainIds")
    )
    if train_ids.is_file() and not label_ids.is_file():
        return train_ids
    return CodedMask(label_ids, CODING)
