"""Guess which kind of data set lies in a folder."""

from __future__ import annotations

from pathlib import Path

from model.data.dataset import DATASETS, DatasetError
from model.data.folder import DESCRIPTION

IMAGE_FOLDER = "imagefolder"
# Files and folders that only one kind of set has, below the folder that --data names.
MARKS = {
    "voc": ("VOCdevkit/VOC2012", "VOC2012", "ImageSets/Segmentation"),
    "camvid": ("CamVid", "trainannot"),
    "cityscapes": ("leftImg8bit", "cityscapes/leftImg8bit"),
    "coco": ("train2017", "coco/train2017"),
}


def kinds(root: Path) -> list[str]:
    """The kinds of data set that lie below `root`; a description of your own data goes first."""
    if (root / DESCRIPTION).exists():
        return ["folder"]
    return [kind for kind, marks in MARKS.items() if any((root / mark).exists() for mark in marks)]


def choose(given: str | None, root: Path, trained_on: object = None) -> str:
    """The data set to evaluate on: the given one, else the one in `root`, else the one trained on.

    If `root` holds several, it is the one that the network was trained on.
    """
    if given is not None:
        return given
    found = kinds(root)
    known = trained_on if isinstance(trained_on, str) and trained_on in DATASETS else None
    if known in found or len(found) != 1:
        return known or "voc"
    return found[0]


def guess(root: Path, split: str) -> str:
    """Name the kind of data set below `root` by the file or folder that only that kind has."""
    found = kinds(root)
    if not found and any(p.is_dir() for p in (root / split).glob("*")):
        return IMAGE_FOLDER
    if len(found) != 1:
        raise DatasetError(
            f"{root} holds {' and '.join(found) or 'no known set'}; give --dataset, or describe "
            "your own images and masks by a dataset.toml (docs/data.md)"
        )
    return found[0]
