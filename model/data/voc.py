"""PASCAL VOC 2012, with the masks of SBD where they were added (split `trainaug`).

torchvision's VOCSegmentation has no trainaug and opens every picture, so this module
lists the folders itself.
"""

from __future__ import annotations

from pathlib import Path

from annotations.colors import palette
from model.data.pairs import Dataset, DatasetError, Pair, home, read_names

__all__ = ["CLASSES", "VOID_COLOR", "find", "palette"]

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
BASE = Path("VOCdevkit/VOC2012")
PLACES = (str(BASE), BASE.name, "")  # below what --data names
LISTS = "ImageSets/Segmentation"
MASKS = "SegmentationClass"
# SBD's extra masks live in a folder of their own, where every converter of them puts them.
AUGMENTED_MASKS = "SegmentationClassAug"
VOID_COLOR = (224, 224, 192)


def find(root: Path, split: str) -> Dataset:
    """List a split by its file below ImageSets/Segmentation; `root` may be VOC2012 itself."""
    base = home(root, PLACES, LISTS)
    masks = AUGMENTED_MASKS if split == "trainaug" else MASKS
    names = _names(base / LISTS, split)
    if names and Path(names[0]).suffix.lower() in (".jpg", ".jpeg", ".png"):
        raise DatasetError(
            f"{base / LISTS / split}.txt lists {names[0]!r}: give names without the suffix, one a "
            f"line, such as {Path(names[0]).stem}"
        )
    pairs = tuple(
        Pair(name, base / "JPEGImages" / f"{name}.jpg", base / masks / f"{name}.png")
        for name in names
    )
    return Dataset("voc", split, pairs, CLASSES, palette(len(CLASSES)), void_colors=(VOID_COLOR,))


def _names(lists: Path, split: str) -> list[str]:
    """The names of a split; copies of VOC often lack trainval.txt, which is train plus val."""
    if split == "trainval" and not (lists / "trainval.txt").is_file():
        return sorted({*read_names(lists / "train.txt"), *read_names(lists / "val.txt")})
    return read_names(lists / f"{split}.txt")
