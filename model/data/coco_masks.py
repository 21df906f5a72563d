"""Draw masks of VOC's classes from COCO's annotations, once, as PNG files.

As in the reference (Chen et al. 2017, arXiv:1706.05587, on COCO pretraining) and in
torchvision, the set consists of training images with more than 1000 annotated pixels
of VOC classes and of every image of val; COCO's other classes are background. Crowd
annotations are drawn too.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from tqdm import tqdm

from model.data import voc
from model.data.coco import MASKS, base
from model.data.pairs import VOID, write_mask

MIN_PIXELS = 1000
# COCO's category of each VOC class, in VOC's order from aeroplane to tvmonitor.
CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
CLASS_OF = {category: index for index, category in enumerate(CATEGORIES, start=1)}


def source(root: Path, split: str) -> Path:
    """The path of a split's annotations."""
    return base(root) / "annotations" / f"instances_{split}2017.json"


def write_masks(root: Path, split: str) -> int:
    """Draw the masks of a split and list them; returns how many. Continues an interrupted run."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells its progress there
        coco = COCO(str(source(root, split)))
    folder = base(root) / MASKS / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for image in tqdm(list(chosen(coco, split)), unit="mask", disable=not sys.stderr.isatty()):
        name = Path(coco.imgs[image]["file_name"]).stem
        if not (folder / f"{name}.png").exists():
            write_mask(folder / f"{name}.png", draw(coco, image), voc.palette(256))
        names.append(name)
    # The list comes last: it says that the masks are complete.
    text = "".join(f"{name}\n" for name in sorted(names))
    (folder.parent / f"{split}.txt").write_text(text, encoding="utf-8")
    return len(names)


def chosen(coco: COCO, split: str) -> Iterator[int]:
    """The ids of the images that belong to the set, as described above."""
    for image in sorted(coco.imgs):
        area = sum(annotation["area"] for annotation in _of_voc(coco, image))
        if split == "val" or area > MIN_PIXELS:
            yield image


def _of_voc(coco: COCO, image: int) -> list[dict[str, Any]]:
    return [row for row in coco.imgToAnns[image] if row["category_id"] in CLASS_OF]


def draw(coco: COCO, image: int) -> NDArray[np.uint8]:
    """Class ids of an image, (H, W) uint8; void where objects of different classes overlap.

    torchvision makes every overlap void; where both objects are of one class it is known.
    """
    size = coco.imgs[image]
    ids = np.zeros((size["height"], size["width"]), np.uint8)
    for annotation in _of_voc(coco, image):
        label = CLASS_OF[annotation["category_id"]]
        region = decode(coco.annToRLE(annotation))
        clash = region & (ids != 0) & (ids != label)
        ids[region] = label
        ids[clash] = VOID
    return ids


def decode(runs: dict[str, Any]) -> NDArray[np.bool_]:
    """Pixels (H, W) of COCO's run lengths."""
    with warnings.catch_warnings():
        # pycocotools 2.0 hands NumPy 2 an array in the old way.
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(rle.decode(runs), bool)
