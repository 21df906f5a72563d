"""Label Studio's JSON export: https://labelstud.io/guide/export#Label-Studio-JSON-format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from annotations.errors import AnnotationError, Notes
from annotations.files import Reading, label_files, load_json
from annotations.runs import brush_pixels
from annotations.shapes import (
    Labelled,
    Labels,
    Later,
    Outline,
    Patch,
    Region,
    Shape,
    Size,
    box,
    ellipse,
    ring,
    turned,
)

UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio's prefix of uploaded files
WEB = ("http", "https")  # whose addresses are percent-encoded
KINDS = ("polygon", "brush", "rectangle", "ellipse")
# Results that say something about the photo or about regions, and are no regions.
OTHERS = ("choices", "textarea", "rating", "taxonomy", "relation", "number", "datetime")


def read(where: Path, reading: Reading, notes: Notes) -> Labels:
    """Read the file, or all JSON files of a folder.

    Of a task's annotations the one marked as ground truth counts, else the latest; skipped
    ones do not, and predictions only where they are asked for and nobody has labelled.
    """
    files = label_files(where, ".json")
    labels = Labels([])
    for path in files:
        document = load_json(path)
        tasks = document if isinstance(document, list) else [document]
        for task in tasks:
            if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                raise AnnotationError(
                    f"{path} is not Label Studio's JSON: export it as JSON, not as JSON-MIN"
                )
            if (photo := _photo(task, path, reading, notes)) is not None:
                labels.photos.append(photo)
    return labels


def _photo(task: dict[str, Any], path: Path, reading: Reading, notes: Notes) -> Labelled | None:
    where = f"task {task.get('id')}"
    try:
        address = _address(task["data"])
        if address is None:
            notes.add("task without a photo", where)
            return None
        annotation = _chosen(task, notes, where)
        if annotation is None and reading.predictions and task.get("predictions"):
            annotation = task["predictions"][-1]
        if annotation is None:
            notes.add("task that nobody has labelled", where)
            return None
        results = annotation["result"]
        rotated = [each.get("image_rotation") for each in results if each.get("image_rotation")]
        problem = f"it was turned by {rotated[0]} degrees in the tool" if rotated else ""
        regions = tuple(_regions(results, reading, notes, where))
        return Labelled(photo_name(address), _size(results), regions, problem=problem)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AnnotationError(f"{path}, {where}: not Label Studio's JSON: {error!r}") from None


def _address(data: dict[str, Any]) -> str | None:
    """The task's photo: the field `image`, else the first text that looks like a file."""
    texts = [str(data["image"])] if "image" in data else []
    texts += [text for text in data.values() if isinstance(text, str) and "." in text]
    return texts[0] if texts else None


def photo_name(address: str) -> str:
    """The photo's path: `/data/upload/3/0123abcd-a.jpg` -> a.jpg, `...?d=b/a.jpg` -> b/a.jpg.

    Raises ValueError for an address that is broken.
    """
    parts = urlsplit(address)
    if "://" in address and parts.scheme not in WEB:  # an object store's keys are not encoded
        return address.partition("://")[2].partition("/")[2]
    local = parse_qs(parts.query).get("d")
    if local:
        return local[0]
    path = PurePosixPath(unquote(parts.path))
    if "upload" in path.parts:
        return UPLOADED.sub("", path.name)
    return str(path).lstrip("/")


def _chosen(task: dict[str, Any], notes: Notes, where: str) -> dict[str, Any] | None:
    """The annotation that counts; names the others."""
    all_of_them = task.get("annotations", task.get("completions")) or []
    done = [each for each in all_of_them if not each.get("was_cancelled")]
    if len(done) < len(all_of_them):
        notes.add("annotation that was skipped in the tool", where)
    if len(done) > 1:
        notes.add("task with several annotations: the ground truth or the latest counts", where)
    return max(
        done,
        key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at", ""))),
        default=None,
    )


def _size(results: list[dict[str, Any]]) -> Size | None:
    sizes = [
        (int(each["original_width"]), int(each["original_height"]))
        for each in results
        if "original_width" in each
    ]
    return sizes[0] if sizes else None


def _regions(
    results: list[dict[str, Any]], reading: Reading, notes: Notes, where: str
) -> Iterator[Region]:
    """Yield the regions. A shape and its label may be two results with one id."""
    named = {
        each.get("id"): each["value"].get("labels", [])
        for each in results
        if each.get("type") == "labels"
    }
    shaped = {each.get("id") for each in results if each.get("type") in KINDS}
    for each in results:
        kind, value = str(each.get("type")), each.get("value", {})
        if kind == "labels" and each.get("id") in shaped:
            continue  # its shape is another result
        labels = value.get(kind) or value.get("labels") or named.get(each.get("id"), [])
        try:
            shape = _shape(kind.removesuffix("labels"), each, value, reading)
        except (ValueError, KeyError) as error:
            notes.add(f"{kind} of {', '.join(map(str, labels)) or 'no label'}: {error}", where)
            continue
        if not labels:
            notes.add(f"{kind} without a label", where)
            continue
        if len(labels) > 1:
            notes.add("shape with several labels: the first counts", where)
        yield Region(str(labels[0]), shape)


def _shape(kind: str, result: dict[str, Any], value: dict[str, Any], reading: Reading) -> Shape:
    if kind in OTHERS:
        raise ValueError("it is no shape")
    if kind not in KINDS and kind:
        raise ValueError("it has no area" if kind in ("keypoint", "vector") else "it is unknown")
    width, height = int(result["original_width"]), int(result["original_height"])
    if "rle" in value:
        return Later(partial(_brush, value["rle"], width, height))
    percent = np.array((width, height), np.float64) / 100
    if "points" in value:
        points = np.array(value["points"], np.float64) * percent
        return Outline((ring(points.ravel().tolist(), reading.first_pixel),))
    x, y = float(value["x"]) * percent[0], float(value["y"]) * percent[1]
    turn = float(value.get("rotation") or 0)
    if "radiusX" in value:
        radii = float(value["radiusX"]) * percent[0], float(value["radiusY"]) * percent[1]
        return Outline((ellipse(x, y, *radii, turn=turn),))
    across, down = float(value["width"]) * percent[0], float(value["height"]) * percent[1]
    return Outline((turned(box(x, y, x + across, y + down), x, y, turn),))


def _brush(data: list[int], width: int, height: int) -> Patch:
    return Patch(brush_pixels(data, width, height))
