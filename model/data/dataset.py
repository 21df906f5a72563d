"""Pairs of photos and masks, found where their publishers put them.

`find(name, root, split)` lists a set without opening any picture; the pairs are
read one at a time, by the training loader and by the evaluator alike.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

VOID = 255

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
# SegNet's colours for the eleven classes.
CAMVID_PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip

Color = tuple[int, int, int]


def voc_palette(colors: int) -> tuple[Color, ...]:
    """The VOC colour map: the bits of the class id, spread over the channels from the top."""

    def channel(index: int, first: int) -> int:
        bits = (((index >> (3 * place + first)) & 1) << (7 - place) for place in range(8))
        return sum(bits)

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(colors))


@dataclass(frozen=True)
class Pair:
    """One photo with its mask; `name` is the stem that lists and submissions use."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """A split of a data set: its pairs and what their mask values mean."""

    name: str
    split: str
    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    # Mask values that mean "do not judge"; everything >= len(classes) is void too.
    void: int = VOID


class DatasetError(ValueError):
    """A data set is missing, incomplete or not what its name says."""


def find(name: str, root: Path, split: str) -> Dataset:
    """List the pairs of a known data set below `root`, laid out as its publisher does.

    Raises DatasetError naming the path that is missing, or the valid names.
    """
    if name not in DATASETS:
        raise DatasetError(f"dataset {name!r} is unknown; choose one of {', '.join(DATASETS)}")
    dataset = DATASETS[name](root, split)
    if not dataset.pairs:
        raise DatasetError(f"dataset {name!r}, split {split!r} below {root} lists no image")
    return dataset


def _names(path: Path) -> list[str]:
    if not path.is_file():
        splits = sorted(p.stem for p in path.parent.glob("*.txt"))
        raise DatasetError(f"{path} does not exist; splits found beside it: {splits or 'none'}")
    return path.read_text(encoding="utf-8").split()


def _voc(root: Path, split: str) -> Dataset:
    base = root / "VOCdevkit" / "VOC2012"
    # SBD's extra masks live in a folder of their own, where every converter of them puts them.
    masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    pairs = tuple(
        Pair(name, base / "JPEGImages" / f"{name}.jpg", base / masks / f"{name}.png")
        for name in _names(base / "ImageSets" / "Segmentation" / f"{split}.txt")
    )
    return Dataset("voc", split, pairs, VOC_CLASSES, voc_palette(len(VOC_CLASSES)))


def _camvid(root: Path, split: str) -> Dataset:
    base = root / "CamVid"
    pairs = tuple(
        Pair(name, _picture(base / split / name), base / f"{split}annot" / f"{name}.png")
        for name in _names(base / f"{split}.txt")
    )
    return Dataset("camvid", split, pairs, CAMVID_CLASSES, CAMVID_PALETTE, void=11)


def _picture(stem: Path) -> Path:
    """CamVid is handed around as PNG and as JPEG."""
    jpeg = stem.with_suffix(".jpg")
    return jpeg if jpeg.exists() else stem.with_suffix(".png")


class FolderConfig(BaseModel):
    """`dataset.toml` of your own data; `{split}` in a folder stands for the split's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[str, ...] = Field(min_length=1, max_length=VOID)
    palette: tuple[Color, ...] = ()  # VOC's colours where left out
    void: int = Field(VOID, ge=0, le=255)
    images: str = "images/{split}"
    masks: str = "masks/{split}"
    lists: str | None = None  # a text file of stems, e.g. "{split}.txt"; else every image


def _folder(root: Path, split: str) -> Dataset:
    config = _folder_config(root / "dataset.toml")
    images, masks = (
        root / name.replace("{split}", split) for name in (config.images, config.masks)
    )
    if not images.is_dir():
        raise DatasetError(f"{images} does not exist; set `images` in {root / 'dataset.toml'}")
    found: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        if path.stem in found:
            raise DatasetError(f"{found[path.stem]} and {path} share a name; rename one of them")
        found[path.stem] = path
    names = _names(root / config.lists.replace("{split}", split)) if config.lists else list(found)
    pairs = tuple(
        Pair(name, found.get(name, images / f"{name}.jpg"), masks / f"{name}.png") for name in names
    )
    palette = config.palette or voc_palette(len(config.classes))
    return Dataset("folder", split, pairs, config.classes, palette, config.void)


def _folder_config(path: Path) -> FolderConfig:
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; write one that names your classes")
    try:
        config = FolderConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DatasetError(f"{path}: {key}: {first['msg']}") from error
    except ValueError as error:  # not TOML, not UTF-8
        raise DatasetError(f"{path}: {error}") from error
    if config.palette and len(config.palette) != len(config.classes):
        raise DatasetError(
            f"{path}: palette has {len(config.palette)} colours for {len(config.classes)} classes"
        )
    return config


DATASETS: dict[str, Callable[[Path, str], Dataset]] = {
    "voc": _voc,
    "camvid": _camvid,
    "folder": _folder,
}


def read_mask(path: Path, *, classes: int, void: int = VOID) -> NDArray[np.uint8]:
    """Read a mask of class ids, (H, W) uint8, with every id that is no class set to 255.

    Raises DatasetError for an RGB mask: its colours are not class ids.
    """
    with Image.open(path) as mask:
        if mask.mode not in ("P", "L"):
            raise DatasetError(
                f"{path} has mode {mask.mode}: masks hold class ids (mode P or L), not colours"
            )
        ids = np.asarray(mask)
    return np.where((ids < classes) & (ids != void), ids, np.uint8(VOID))
