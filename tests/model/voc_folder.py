"""A small VOC-like data set on disk: coloured squares on grey, and their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model.data.dataset import VOC_CLASSES, voc_palette


def make(
    root: Path, count: int = 6, split: str = "train", size: tuple[int, int] = (48, 40)
) -> Path:
    """Write `count` pairs of (W, H) `size`; the odd ones hold class 15, the others class 8."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    names = []
    for index in range(count):
        name = f"2007_{index:06}"
        label, color = (15, (230, 40, 40)) if index % 2 else (8, (40, 40, 230))
        image = np.full((size[1], size[0], 3), 128, np.uint8)
        mask = np.zeros((size[1], size[0]), np.uint8)
        top, left = rng.integers(2, 12, 2)
        image[top : top + 20, left : left + 24] = color
        mask[top : top + 20, left : left + 24] = label
        mask[top, left : left + 24] = 255
        Image.fromarray(image).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
        picture = Image.fromarray(mask)
        picture.putpalette(np.array(voc_palette(256), np.uint8).tobytes())
        picture.save(base / "SegmentationClass" / f"{name}.png")
        names.append(name)
    (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    assert len(VOC_CLASSES) == 21
    return root
