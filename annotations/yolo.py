"""YOLO's segmentation files, as Ultralytics describes them: one text file for each photo.

Each line is a class number and a polygon, x and y as shares of the photo's sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from annotations.errors import AnnotationError, Notes
from annotations.files import Reading, label_files, load_text, split_of
from annotations.shapes import Labelled, Labels, Outline, Region, box, ring

LISTS = ("classes.txt", "obj.names", "labels.txt")  # of class names, one per line
NO_LABELS = {*LISTS, "train.txt", "val.txt", "test.txt", "requirements.txt", "readme.txt"}


def read(where: Path, reading: Reading, notes: Notes) -> Labels:
    """Read data.yaml and the text files of its folder, or of a folder with `classes.txt`."""
    base = where.parent if where.is_file() else where
    names = reading.names or _names(where)
    photos = []
    for path in label_files(base, ".txt"):
        if path.name.lower() in NO_LABELS:
            continue
        inner = path.relative_to(base).with_suffix("")
        parts = [part for part in inner.parts if part != "labels"]
        split = next((found for part in parts[:-1] if (found := split_of(part))), None)
        regions = tuple(_regions(path, names, reading, notes))
        photos.append(Labelled("/".join(parts), None, regions, split))
    if not photos:
        raise AnnotationError(f"{base} holds no text file with labels")
    return Labels(photos, names)


def _names(where: Path) -> tuple[str, ...]:
    files = [where] if where.is_file() else sorted((*where.glob("*.yaml"), *where.glob("*.yml")))
    for path in files:
        names = _yaml(path).get("names")
        if isinstance(names, dict):
            return tuple(str(names[key]) for key in sorted(names, key=int))
        if isinstance(names, list):
            return tuple(map(str, names))
    for path in (where / name for name in LISTS):
        if path.is_file():
            lines = load_text(path).splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    raise AnnotationError(
        f"{where} names no classes: it has no data.yaml with `names` and no classes.txt; "
        "give --names in the order of their numbers"
    )


def _yaml(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only data.yaml needs it

    text = load_text(path)
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise AnnotationError(f"{path} is no YAML: {error}") from None
    return document if isinstance(document, dict) else {}


def _regions(path: Path, names: tuple[str, ...], reading: Reading, notes: Notes) -> list[Region]:
    regions = []
    for number, line in enumerate(load_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            regions.append(_region(line.split(), names, reading))
        except ValueError as error:
            notes.add(str(error), f"{path.name}, line {number}")
    return regions


def _region(words: list[str], names: tuple[str, ...], reading: Reading) -> Region:
    try:
        index = int(words[0]) - reading.first_class
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError("line that is not a class number and coordinates") from None
    if not 0 <= index < len(names):
        raise ValueError(
            f"class number {words[0]}, which has no name (--first-class 1 counts from 1)"
        )
    if len(numbers) == 4:
        if not reading.boxes:
            raise ValueError(f"box of {names[index]} instead of an outline (--boxes takes it)")
        x, y, width, height = numbers
        corners = box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Region(names[index], Outline((corners,), relative=True))
    try:
        points = ring(numbers)
    except ValueError as error:
        raise ValueError(f"shape of {names[index]}: {error}") from None
    if points.min() < -0.5 or points.max() > 1.5:
        raise ValueError(f"shape of {names[index]}: coordinates are pixels, not shares from 0 to 1")
    return Region(names[index], Outline((points,), relative=True))
