"""LabelMe's JSON, one file for each photo: https://github.com/wkentaro/labelme."""

from __future__ import annotations

import base64
import binascii
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from annotations.errors import AnnotationError, Notes
from annotations.files import Reading, label_files, load_json
from annotations.shapes import (
    Labelled,
    Labels,
    Later,
    Outline,
    Patch,
    Region,
    Shape,
    box,
    ellipse,
    png_patch,
    ring,
)

NO_AREA = ("line", "linestrip", "point", "points")


def read(where: Path, reading: Reading, notes: Notes) -> Labels:
    """Read the JSON files of a folder, and of the folders in it."""
    files = label_files(where, ".json")
    labels = Labels([])
    for path in files:
        document = load_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
            if len(files) == 1:
                raise AnnotationError(f'{path} has no list "shapes": it is not LabelMe\'s JSON')
            notes.add("JSON file without shapes: it is not LabelMe's", path.name)
            continue
        base = where if where.is_dir() else where.parent
        labels.photos.append(_photo(document, path, base, reading, notes))
    if not labels.photos:
        raise AnnotationError(f"{where}: no file of LabelMe is in it")
    return labels


def _photo(
    document: dict[str, Any], path: Path, base: Path, reading: Reading, notes: Notes
) -> Labelled:
    named = str(document.get("imagePath") or path.with_suffix("").name).replace("\\", "/")
    folder = path.parent.relative_to(base).as_posix()
    photo = named if folder == "." or "/" in named else f"{folder}/{named}"
    sides = (document.get("imageWidth"), document.get("imageHeight"))
    size = (sides[0], sides[1]) if all(isinstance(side, int) for side in sides) else None
    regions = []
    for shape in document["shapes"]:
        try:
            region = _region(shape, reading)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            label = shape.get("label") if isinstance(shape, dict) else shape
            notes.add(f"shape of {label}: {error}", path.name)
            continue
        regions.append(region)
    content = partial(_content, path) if document.get("imageData") else None
    return Labelled(photo, size, tuple(regions), content=content)  # type: ignore[arg-type]


def _content(path: Path) -> bytes:
    """The photo that the file contains; read again, so that not all are in memory at once."""
    return base64.b64decode(load_json(path)["imageData"])


def _region(shape: dict[str, Any], reading: Reading) -> Region:
    return Region(str(shape["label"]), _shape(shape, reading))


def _shape(shape: dict[str, Any], reading: Reading) -> Shape:
    kind = shape.get("shape_type") or "polygon"
    if kind in NO_AREA:
        raise ValueError(f"a {kind} has no area")
    points = np.asarray(shape["points"], np.float64) - reading.first_pixel
    if kind in ("polygon", "oriented_rectangle"):
        return Outline((ring(points.ravel().tolist()),))
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return Outline((box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)),))
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        return Outline((ellipse(x0, y0, radius, radius),))
    if kind == "mask":
        return Later(partial(_mask, str(shape["mask"]), int(x0), int(y0)))
    raise ValueError(f"shape_type {kind} is unknown")


def _mask(text: str, left: int, top: int) -> Patch:
    try:
        return png_patch(base64.b64decode(text), left, top)
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError(f"its mask cannot be read: {error}") from None
