"""Recognise the kind of labels: a data set, or a label tool's files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from model.data.folder import SUFFIXES
from model.data.guess import kinds
from model.data.pairs import DatasetError
from model.data.photo import opened

KNOWN = (
    "a data set with dataset.toml, VOC, CamVid, Cityscapes or COCO as published, or the files of "
    "COCO, CVAT, Label Studio, LabelMe or YOLO, or masks of colours"
)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
PHOTO_FOLDERS = ("images", "photos", "JPEGImages", "imgs", "leftImg8bit")


def known_set(source: Path) -> str | None:
    """Return the kind of data set in a folder; None if it cannot be read without an import."""
    if not source.is_dir() or (source / "labelmap.txt").is_file():  # CVAT's, laid out like VOC
        return None
    found = kinds(source)
    return found[0] if len(found) == 1 else None


def tool(source: Path) -> str:
    """Return the format of a label tool's file or folder; raises DatasetError for others."""
    if not source.exists():
        raise DatasetError(f"{source} does not exist; the path is relative to {Path.cwd()}")
    if source.suffix.lower() == ".xml":
        return "cvat"
    if source.suffix.lower() in (".yaml", ".yml"):
        return "yolo-seg"
    if source.suffix.lower() == ".json":
        return _of_json(source)
    if source.is_dir():
        return _of_folder(source)
    if source.suffix.lower() in ARCHIVES:
        raise DatasetError(f"{source} is an archive: unpack it, and give the folder or file in it")
    raise DatasetError(f"{source} is not known; what can be read is {KNOWN}")


def _of_folder(folder: Path) -> str:
    if any(folder.rglob("*_polygons.json")) or any(folder.rglob("*_labelIds.png")):
        return "cityscapes-like"
    if (folder / "data.yaml").is_file() or (folder / "classes.txt").is_file():
        return "yolo-seg"
    if (folder / "labelmap.txt").is_file() or (folder / "SegmentationClass").is_dir():
        return "voc-colours"
    xml, others = _sorted(folder.rglob("*.xml")), _sorted(folder.rglob("*.json"))
    if xml and others:
        raise DatasetError(
            f"{folder} holds files of several tools, {xml[0].name} and {others[0].name}: give one"
        )
    if xml:
        return "cvat"
    if others:
        return _of_json(others[0])
    if any(_is_colored(path) for path in _sorted(folder.glob("masks/*.png"))[:3]):
        return "voc-colours"
    if next(folder.iterdir(), None) is None:
        raise DatasetError(f"{folder} is empty; what can be read is {KNOWN}")
    raise DatasetError(
        f"{folder} holds no labels that are known{_instead(folder)}; what can be read is {KNOWN}"
    )


def _instead(folder: Path) -> str:
    """Describe the content of a folder without labels."""
    files = _sorted(path for path in folder.iterdir() if path.is_file())
    if any(path.suffix.lower() in ARCHIVES for path in files):
        return ", but an archive: unpack it"
    if len(files) > 0 and all(path.suffix.lower() in SUFFIXES for path in files):
        return (
            f", only {len(files)} pictures: give the file or folder of the labels, and photos by "
            "--images; masks lie in a folder called masks or SegmentationClass"
        )
    return ""


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """The paths in order, without the ._NAME that macOS leaves beside each file it copies."""
    return sorted(path for path in paths if not path.name.startswith("."))


def _of_json(path: Path) -> str:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is no JSON: {error}") from None
    if isinstance(document, dict) and "images" in document and "annotations" in document:
        return "coco"
    if isinstance(document, dict) and "shapes" in document:
        return "labelme"
    first = document[0] if isinstance(document, list) and document else document
    if isinstance(first, dict) and "data" in first:
        return "labelstudio"
    if isinstance(document, list) and isinstance(first, dict) and "image" in first:
        raise DatasetError(
            f"{path} looks like Label Studio's JSON-MIN, which leaves shapes' sizes out: export "
            "the project as JSON"
        )
    raise DatasetError(f"{path} is the JSON of no known tool; what can be read is {KNOWN}")


def _is_colored(path: Path) -> bool:
    with opened(path) as picture:
        return picture.mode in ("RGB", "RGBA")


def photos_of(source: Path) -> Path:
    """Guess where the photos of a tool's files are; raises DatasetError if it is unclear."""
    base = source if source.is_dir() else source.parent
    places = [base / name for name in PHOTO_FOLDERS]
    places += [base.parent / name for name in PHOTO_FOLDERS]
    for place in places:
        if place.is_dir():
            return place
    if any(path.suffix.lower() in (".jpg", ".jpeg") for path in base.rglob("*")):
        return base
    raise DatasetError(f"--images DIR: say where the photos of {source} are")
