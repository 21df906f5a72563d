"""COCO 2017 with the 20 classes of VOC, for pretraining (section 4.1 and Table 5 of the paper).

COCO's annotations are polygons in one large JSON file. `model.data.coco_masks` draws
them once into PNG files. A training then starts without reading half a gigabyte of
JSON in every worker, and the masks can be checked like those of any other set.
torchvision's CocoDetection would draw them again for every crop.
"""

from __future__ import annotations

from pathlib import Path

from model.data import voc
from model.data.pairs import Dataset, DatasetError, Pair, read_names

SPLITS = ("train", "val")
MASKS = "masks_voc"


def base(root: Path) -> Path:
    """The folder that holds train2017, val2017 and annotations: `root/coco` or `root`."""
    return root / "coco" if (root / "coco").is_dir() else root


def find(root: Path, split: str) -> Dataset:
    """List a split whose masks were drawn by `python -m model.data prepare coco`."""
    if split not in SPLITS:
        raise DatasetError(f"coco has no split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = base(root)
    names = folder / MASKS / f"{split}.txt"
    if not names.is_file():
        raise DatasetError(
            f"{names} does not exist; run `python -m model.data prepare coco --data {root}`"
        )
    pairs = tuple(
        Pair(
            name,
            folder / f"{split}2017" / f"{name}.jpg",
            folder / MASKS / f"{split}2017" / f"{name}.png",
        )
        for name in read_names(names)
    )
    colors = voc.palette(len(voc.CLASSES))
    return Dataset("coco", split, pairs, voc.CLASSES, colors, void_colors=(voc.VOID_COLOR,))
