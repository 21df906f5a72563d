"""Find data sets by name, in their publishers' layout.

`find(name, root, split)` lists a set without opening any picture; the training loader
and the evaluator read the pairs one at a time. torchvision's classes are not used
here: they return opened pictures, have no SBD masks or train ids, and do not name a
broken file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model.data import camvid, cityscapes, coco, folder, voc
from model.data.pairs import (
    UNLABELLED,
    VOID,
    Color,
    Dataset,
    DatasetError,
    Pair,
    read_mask,
    read_pair,
    read_source,
)

__all__ = [
    "DATASETS",
    "UNLABELLED",
    "VOC_CLASSES",
    "VOID",
    "Color",
    "Dataset",
    "DatasetError",
    "Pair",
    "find",
    "read_mask",
    "read_pair",
    "read_source",
    "voc_palette",
]

VOC_CLASSES = voc.CLASSES
voc_palette = voc.palette

DATASETS: dict[str, Callable[[Path, str], Dataset]] = {
    "voc": voc.find,
    "camvid": camvid.find,
    "cityscapes": cityscapes.find,
    "coco": coco.find,
    "folder": folder.find,
}


def find(name: str, root: Path, split: str) -> Dataset:
    """List the pairs of a known data set below `root`, in its publisher's layout.

    Raises DatasetError naming the path that is missing, or the valid names.
    """
    if name not in DATASETS:
        raise DatasetError(f"dataset {name!r} is unknown; choose one of {', '.join(DATASETS)}")
    dataset = DATASETS[name](root, split)
    if not dataset.pairs:
        raise DatasetError(f"dataset {name!r}, split {split!r} below {root} lists no image")
    return dataset
