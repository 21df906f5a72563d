"""COCO's JSON of instances: https://cocodataset.org/#format-data."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from annotations.errors import AnnotationError, Notes
from annotations.files import Reading, label_files, load_json, split_of
from annotations.runs import coco_counts
from annotations.shapes import Labelled, Labels, Outline, Region, Runs, Shape, Size, box, ring


def read(where: Path, reading: Reading, notes: Notes) -> Labels:
    """Read one file, or all of a folder, whose names then tell the splits."""
    files = label_files(where, ".json")
    labels = Labels([])
    for path in files:
        document = load_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("images"), list):
            if len(files) == 1:
                raise AnnotationError(f'{path} has no list "images": it is not COCO\'s JSON')
            notes.add("JSON file without images: it is not COCO's", path.name)
            continue
        _add(labels, document, path, reading, notes)
    if not labels.photos:
        raise AnnotationError(f"{where}: there is no photo in it")
    return labels


def _add(
    labels: Labels, document: dict[str, Any], path: Path, reading: Reading, notes: Notes
) -> None:
    """Add the photos of one file, and the names of its categories in the order of their ids."""
    try:
        names = {each["id"]: str(each["name"]) for each in document.get("categories", [])}
        found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in document.get("annotations", []):
            found[annotation["image_id"]].append(annotation)
        ordered = [names[key] for key in sorted(names)]
        labels.names = tuple(dict.fromkeys([*labels.names, *ordered]))
        for image in document["images"]:
            size = (int(image["width"]), int(image["height"]))
            photo = str(image["file_name"])
            regions = [
                region
                for annotation in found.pop(image["id"], [])
                if (
                    region := _region(
                        annotation, names, size, reading=reading, notes=notes, where=photo
                    )
                )
                is not None
            ]
            labels.photos.append(Labelled(photo, size, tuple(regions), split_of(path.stem)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AnnotationError(f"{path} is not COCO's JSON of instances: {error!r}") from None
    for image_id, orphans in found.items():
        for _ in orphans:
            notes.add("annotation of an image that the file does not list", f"image_id {image_id}")


def _region(
    annotation: dict[str, Any],
    names: dict[int, str],
    size: Size,
    *,
    reading: Reading,
    notes: Notes,
    where: str,
) -> Region | None:
    number = annotation["category_id"]
    if number not in names:
        notes.add(f"annotation of category_id {number}, which the file does not name", where)
        return None
    try:
        shape = _shape(annotation, size, reading)
    except (ValueError, TypeError, KeyError) as error:
        notes.add(f"annotation of {names[number]}: {error}", where)
        return None
    return Region(names[number], shape)


def _shape(annotation: dict[str, Any], size: Size, reading: Reading) -> Shape:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return _runs(segmentation, size)
    if segmentation:
        return Outline(tuple(ring(numbers, reading.first_pixel) for numbers in segmentation))
    if reading.boxes and annotation.get("bbox"):
        x, y, width, height = (float(number) for number in annotation["bbox"])
        return Outline((box(x, y, x + width, y + height) - reading.first_pixel,))
    raise ValueError("it has a box and no outline (--boxes takes the box)")


def _runs(segmentation: dict[str, Any], size: Size) -> Runs:
    height, width = segmentation["size"]
    if (width, height) != size:
        raise ValueError("its run lengths are for a photo of another size")
    counts = segmentation["counts"]
    numbers = coco_counts(counts) if isinstance(counts, str) else np.array(counts, np.int64)
    if numbers.sum() != width * height or (len(numbers) and numbers.min() < 0):
        raise ValueError("its run lengths do not make the photo's pixels")
    return Runs(size, counts if isinstance(counts, str) else tuple(counts))
