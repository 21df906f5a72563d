"""Guess which kind of data set lies in a folder."""

from __future__ import annotations

from pathlib import Path

from model.data.dataset import DatasetError
from model.data.folder import DESCRIPTION

IMAGE_FOLDER = "imagefolder"
# What only one kind of set has below the folder that --data names.
MARKS = {
    "voc": ("VOCdevkit/VOC2012", "VOC2012", "ImageSets/Segmentation"),
    "camvid": ("CamVid", "trainannot"),
    "cityscapes": ("leftImg8bit", "cityscapes/leftImg8bit"),
    "coco": ("train2017", "coco/train2017"),
}


def guess(root: Path, split: str) -> str:
    """Name the kind of data set below `root` by the file or folder that only that kind has."""
    if (root / DESCRIPTION).exists():
        return "folder"
    found = [kind for kind, marks in MARKS.items() if any((root / mark).exists() for mark in marks)]
    if not found and any(p.is_dir() for p in (root / split).glob("*")):
        return IMAGE_FOLDER
    if len(found) != 1:
        raise DatasetError(
            f"{root} holds {' and '.join(found) or 'no known set'}; give --dataset, or describe "
            "your own images and masks by a dataset.toml (docs/data.md)"
        )
    return found[0]
