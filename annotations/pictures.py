"""Label files that are pictures: masks of colours, and Cityscapes' folders.

Masks of colours are what CVAT exports as "Segmentation mask 1.1" (with `labelmap.txt`), and
PASCAL VOC's `SegmentationClass`. Cityscapes' folders hold polygons (`*_polygons.json`) or
pictures of label numbers (`*_labelIds.png`).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from annotations.errors import AnnotationError, Notes
from annotations.files import Reading, label_files, load_json, load_text, split_of
from annotations.shapes import Color, Labelled, Labels, Outline, Painted, Region, painted, ring

LABEL_MAP = "labelmap.txt"
MASK_FOLDERS = ("SegmentationClass", "masks", "labels")  # where only these hold masks of classes
POLYGONS, LABEL_IDS = "_polygons.json", "_labelIds.png"
KIND = re.compile(r"_gt(Fine|Coarse)$")
CITY_PHOTO = "_leftImg8bit"


def read_colors(where: Path, reading: Reading, notes: Notes) -> Labels:
    """Read masks of colours. Splits are those of `ImageSets/Segmentation/*.txt`."""
    home = where.parent if where.is_file() else where
    colors = _label_map(home / LABEL_MAP) or dict(reading.colors)
    folders = [home / name for name in MASK_FOLDERS if (home / name).is_dir()]
    names = {color: name for name, color in reversed([*colors.items()])}
    splits = _splits(home)
    photos = []
    folder = folders[0] if folders else home
    for path in label_files(folder, ".png"):
        photo = path.relative_to(folder).with_suffix("").as_posix()
        photos.append(_painted(path, photo, names, splits.get(photo), notes))
    return Labels(photos, tuple(colors), colors)


def _painted(
    path: Path, photo: str, names: dict[Color, str], split: str | None, notes: Notes
) -> Labelled:
    try:
        pixels = painted(path, by_color=True)
    except AnnotationError as error:
        return Labelled(photo, None, (), split, problem=str(error))
    regions = []
    for value, count in zip(*np.unique(pixels, return_counts=True), strict=True):
        color = (int(value) >> 16, int(value) >> 8 & 255, int(value) & 255)
        if color in names:
            regions.append(Region(names[color], Painted(path, int(value), by_color=True)))
        else:
            notes.add(
                "colour {} {} {} that has no name".format(*color), f"{path.name}: {count} pixels"
            )
    height, width = pixels.shape
    return Labelled(photo, (width, height), tuple(regions), split)


def _label_map(path: Path) -> dict[str, Color]:
    """CVAT's list: `car:128,0,0::`, a name and its colour in each line."""
    if not path.is_file():
        return {}
    colors: dict[str, Color] = {}
    for line in load_text(path).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(number) for number in rest.partition(":")[0].split(","))
        except ValueError:
            raise AnnotationError(f"{path}: {line!r} is not NAME:RED,GREEN,BLUE::") from None
        colors[name] = (red, green, blue)
    return colors


def _splits(home: Path) -> dict[str, str]:
    """The split of each photo. Lists such as trainval that repeat others come second."""
    found: dict[str, str] = {}
    for path in sorted((home / "ImageSets" / "Segmentation").glob("*.txt")):
        if path.stem in ("train", "val", "test"):
            for line in load_text(path).splitlines():
                found.setdefault(line.strip(), path.stem)
    return found


def read_cityscapes(where: Path, reading: Reading, notes: Notes) -> Labels:
    """Read folders laid out as Cityscapes: polygons where there are some, else label numbers."""
    files = label_files(where, POLYGONS, LABEL_IDS)
    polygons = [path for path in files if path.name.endswith(POLYGONS)]
    used = polygons or files
    photos = [
        _polygons(path, where, reading, notes) if polygons else _ids(path, where, reading, notes)
        for path in used
    ]
    names = () if polygons else reading.names
    return Labels(photos, names, dict(reading.colors))


def _city_photo(path: Path, where: Path, ending: str) -> tuple[str, str | None]:
    """The photo's path without its suffix, and its split: `val/city/NAME_leftImg8bit`."""
    inner = path.relative_to(where if where.is_dir() else where.parent)
    name = KIND.sub("", inner.name.removesuffix(ending))
    split = next((found for part in inner.parts[:-1] if (found := split_of(part))), None)
    return (inner.parent / f"{name}{CITY_PHOTO}").as_posix(), split


def _polygons(path: Path, where: Path, reading: Reading, notes: Notes) -> Labelled:
    """The objects of a file; they are painted in its order."""
    photo, split = _city_photo(path, where, POLYGONS)
    document = load_json(path)
    try:
        size = (int(document["imgWidth"]), int(document["imgHeight"]))
        regions = []
        for each in document["objects"]:
            if each.get("deleted"):
                notes.add(f"object of {each['label']} that is marked as deleted", path.name)
                continue
            if (region := _object(each, reading, notes, path.name)) is not None:
                regions.append(region)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AnnotationError(f"{path} is not Cityscapes' JSON of polygons: {error!r}") from None
    return Labelled(photo, size, tuple(regions), split)


def _object(each: dict[str, Any], reading: Reading, notes: Notes, where: str) -> Region | None:
    label = str(each["label"])
    known = label.removesuffix("group")
    if label.endswith("group") and label not in reading.names and known in reading.names:
        label = known  # several of one kind that could not be told apart
    try:
        numbers = [float(number) for point in each["polygon"] for number in point]
        return Region(label, Outline((ring(numbers, reading.first_pixel),)))
    except ValueError as error:
        notes.add(f"object of {label}: {error}", where)
        return None


def _ids(path: Path, where: Path, reading: Reading, notes: Notes) -> Labelled:
    photo, split = _city_photo(path, where, LABEL_IDS)
    try:
        pixels = painted(path, by_color=False)
    except AnnotationError as error:
        return Labelled(photo, None, (), split, problem=str(error))
    found: Counter[int] = Counter(np.unique(pixels).tolist())
    regions = []
    for value in sorted(found):
        index = value - reading.first_class
        if 0 <= index < len(reading.names):
            regions.append(Region(reading.names[index], Painted(path, value, by_color=False)))
        else:
            notes.add(f"label number {value}, which has no name", path.name)
    height, width = pixels.shape
    return Labelled(photo, (width, height), tuple(regions), split)
