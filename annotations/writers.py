"""Write the files of label tools: one file, or a folder of files, photo by photo."""

from __future__ import annotations

import base64
import io
import json
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from annotations.errors import AnnotationError
from annotations.labelstudio import WEB
from annotations.runs import brush, coco_runs, cvat_runs
from annotations.writing import Finished, Form, Piece, Writer, Writing, whole

DIGITS = 3  # of coordinates in pixels
NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
LINE_BREAKS = re.compile(r"[\r\n]")


def _json(value: Any) -> str:
    """JSON on one line. Bytes of a file name that are no UTF-8 become escapes such as \\udce9."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _attribute(text: str) -> str:
    """A quoted XML attribute; what XML cannot hold becomes a question mark."""
    return quoteattr(NOT_XML.sub("?", text))


def _numbers(piece: Piece) -> list[float]:
    """x, y, x, y, ...; whole numbers are written without a decimal point."""
    return [
        number if isinstance(number, int) else round(number, DIGITS)
        for corner in piece.ring
        for number in corner
    ]


class Coco(Writer):
    """One JSON file of instances. Category ids count from 1, in the order of the classes.

    The annotations wait in a temporary file until all photos are written before them.
    """

    def __init__(self, path: Path, writing: Writing) -> None:
        self._writing = writing
        self._category = {number: at for at, number in enumerate(writing.labels, start=1)}
        self._photos = self._annotations = 0
        self._file = path.open("w", encoding="utf-8")
        # Beside the result: the system's folder for temporary files may be small.
        self._later = tempfile.TemporaryFile(  # noqa: SIM115 - closed by `close`
            "w+", encoding="utf-8", dir=path.parent
        )
        categories = [
            {"id": self._category[number], "name": label, "supercategory": ""}
            for number, label in writing.labels.items()
        ]
        self._file.write(f'{{"info":{{"description":{_json(writing.model)}}},"licenses":[],')
        self._file.write(f'"categories":{_json(categories)},"images":[')

    def add(self, photo: Finished, pieces: list[Piece]) -> None:
        self._photos += 1
        width, height = photo.size
        name = self._writing.prefix + photo.photo
        image = {"id": self._photos, "file_name": name, "width": width, "height": height}
        self._file.write(("," if self._photos > 1 else "") + "\n" + _json(image))
        for piece in pieces:
            self._annotations += 1
            comma = "," if self._annotations > 1 else ""
            self._later.write(f"{comma}\n{_json(self._annotation(photo, piece))}")

    def _annotation(self, photo: Finished, piece: Piece) -> dict[str, Any]:
        segmentation: Any = [_numbers(piece)]
        if piece.patch is not None:
            segmentation = coco_runs(whole(piece.patch, photo.size))
        return {
            "id": self._annotations,
            "image_id": self._photos,
            "category_id": self._category[piece.class_id],
            "segmentation": segmentation,
            "area": piece.area,
            "bbox": list(piece.box()),
            "iscrowd": 0,
            **({} if piece.score is None else {"score": round(piece.score, 4)}),
        }

    def close(self) -> None:
        self._file.write('],"annotations":[')
        self._later.seek(0)
        shutil.copyfileobj(self._later, self._file, 1 << 20)
        self._file.write("]}\n")
        self._later.close()
        self._file.close()


class Cvat(Writer):
    """One XML file, CVAT for images 1.1."""

    def __init__(self, path: Path, writing: Writing) -> None:
        self._writing, self._photos = writing, 0
        self._file = path.open("w", encoding="utf-8")
        self._file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        self._file.write("<version>1.1</version>\n<meta><task><labels>\n")
        for label in writing.labels.values():
            color = "#{:02x}{:02x}{:02x}".format(*writing.colors[label])
            self._file.write(
                f"<label><name>{escape(label)}</name><color>{color}</color><type>any</type>"
                "<attributes></attributes></label>\n"
            )
        self._file.write("</labels></task></meta>\n")

    def add(self, photo: Finished, pieces: list[Piece]) -> None:
        width, height = photo.size
        name = _attribute(self._writing.prefix + photo.photo)
        subset = f" subset={_attribute(photo.split)}" if photo.split else ""
        self._file.write(
            f'<image id="{self._photos}" name={name}{subset} width="{width}" height="{height}">\n'
        )
        self._photos += 1
        for piece in pieces:
            self._file.write(self._shape(piece))
        self._file.write("</image>\n")

    @staticmethod
    def _shape(piece: Piece) -> str:
        common = f'label={_attribute(piece.label)} source="auto" occluded="0"'
        if piece.patch is None:
            numbers = iter(_numbers(piece))
            points = ";".join(f"{x},{y}" for x, y in zip(numbers, numbers, strict=True))
            return f'<polygon {common} points="{points}" z_order="0"></polygon>\n'
        height, width = piece.patch.pixels.shape
        runs = ", ".join(map(str, cvat_runs(piece.patch.pixels)))
        return (
            f'<mask {common} rle="{runs}" left="{piece.patch.left}" top="{piece.patch.top}" '
            f'width="{width}" height="{height}" z_order="0"></mask>\n'
        )

    def close(self) -> None:
        self._file.write("</annotations>\n")
        self._file.close()


class LabelStudio(Writer):
    """One JSON file of tasks, and the labelling configuration beside it (.config.xml)."""

    def __init__(self, path: Path, writing: Writing) -> None:
        self._writing, self._photos = writing, 0
        self._file = path.open("w", encoding="utf-8")
        self._file.write("[")

    def add(self, photo: Finished, pieces: list[Piece]) -> None:
        self._photos += 1
        task = label_studio_task(photo, pieces, self._writing)
        self._file.write(("," if self._photos > 1 else "") + "\n" + _json(task))

    def close(self) -> None:
        self._file.write("]\n")
        self._file.close()


def label_studio_task(photo: Finished, pieces: list[Piece], writing: Writing) -> dict[str, Any]:
    """A task with one prediction or annotation."""
    results = label_studio_results(photo, pieces)
    data = {"image": label_studio_address(writing.prefix, photo.photo)}
    if not writing.as_predictions:
        return {"data": data, "annotations": [{"result": results, "was_cancelled": False}]}
    scores = [piece.score for piece in pieces if piece.score is not None]
    prediction: dict[str, Any] = {"model_version": writing.model, "result": results}
    if scores:
        prediction["score"] = round(sum(scores) / len(scores), 4)
    return {"data": data, "predictions": [prediction]}


def label_studio_address(prefix: str, photo: str) -> str:
    """The address by which Label Studio loads a photo; percent-encoded, except in object stores."""
    if "://" in prefix and urlsplit(prefix).scheme not in WEB:
        return prefix + photo
    return prefix + quote(photo, errors="surrogateescape")


def label_studio_results(
    photo: Finished, pieces: list[Piece], from_name: str = "label", to_name: str = "image"
) -> list[dict[str, Any]]:
    """The regions of a photo as Label Studio's results; polygons in percent of the sides.

    The names are those of the tags in the project's labelling interface.
    """
    width, height = photo.size
    results = []
    for index, piece in enumerate(pieces):
        if piece.patch is None:
            kind = "polygonlabels"
            points = [[100 * x / width, 100 * y / height] for x, y in piece.ring]
            value: dict[str, Any] = {"points": points, "closed": True}
        else:
            kind = "brushlabels"
            value = {"format": "rle", "rle": brush(whole(piece.patch, photo.size))}
        results.append(
            {
                "id": f"r{index}",
                "type": kind,
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**value, kind: [piece.label]},
                **({} if piece.score is None else {"score": round(piece.score, 4)}),
            }
        )
    return results


def label_studio_config(writing: Writing) -> str:
    """The labelling configuration of a project that takes these results."""
    tag = "PolygonLabels" if writing.form == "polygons" else "BrushLabels"
    labels = "".join(
        '    <Label value={} background="#{:02x}{:02x}{:02x}"/>\n'.format(
            _attribute(label), *writing.colors[label]
        )
        for label in writing.labels.values()
    )
    return (
        f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <{tag} name="label" toName="image">\n{labels}  </{tag}>\n</View>\n'
    )


class _Files:
    """The files of a folder, one for each photo."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owners: dict[str, str] = {}  # file -> photo
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, photo: str, *folders: str, suffix: str) -> Path:
        """The path of a photo's file; raises ValueError if another photo has the same file."""
        file = PurePosixPath(*folders, PurePosixPath(photo).with_suffix(suffix))
        # Upper and lower case count as equal, because some file systems do not distinguish them.
        owner = self._owners.setdefault(str(file).lower(), photo)
        if owner != photo:
            raise ValueError(f"its file {file} is that of {owner}: rename one of them")
        path = self._folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class LabelMe(Writer):
    """A folder of JSON files that mirrors the photos' folders."""

    def __init__(self, path: Path, writing: Writing) -> None:
        self._files, self._writing = _Files(path), writing

    def add(self, photo: Finished, pieces: list[Piece]) -> None:
        place = PurePosixPath(photo.photo)
        path = self._files.place(photo.photo, suffix=".json")
        there = posixpath.join(self._writing.prefix, photo.photo)
        width, height = photo.size
        document: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [self._shape(piece) for piece in pieces],
            "imagePath": posixpath.relpath(there, str(place.parent)),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path.write_text(_json(document), encoding="utf-8")

    @staticmethod
    def _shape(piece: Piece) -> dict[str, Any]:
        common: dict[str, Any] = {
            "label": piece.label,
            "group_id": None,
            "description": "",
            "flags": {},
        }
        if piece.patch is None:
            numbers = iter(_numbers(piece))
            points = [[x, y] for x, y in zip(numbers, numbers, strict=True)]
            return {**common, "points": points, "shape_type": "polygon"}
        height, width = piece.patch.pixels.shape
        left, top = piece.patch.left, piece.patch.top
        stream = io.BytesIO()
        Image.fromarray(piece.patch.pixels).save(stream, "PNG")
        return {
            **common,
            "points": [[left, top], [left + width - 1, top + height - 1]],
            "shape_type": "mask",
            "mask": base64.b64encode(stream.getvalue()).decode("ascii"),
        }

    def close(self) -> None:
        """Do nothing: each file is already complete."""


class Yolo(Writer):
    """A folder with data.yaml and labels/SPLIT/NAME.txt; class numbers count from 0."""

    def __init__(self, path: Path, writing: Writing) -> None:
        self._folder, self._files, self._writing = path, _Files(path), writing
        self._index = {number: at for at, number in enumerate(writing.labels)}
        self._splits: dict[str, None] = {}

    def add(self, photo: Finished, pieces: list[Piece]) -> None:
        split = photo.split or "train"
        path = self._files.place(photo.photo, "labels", split, suffix=".txt")
        self._splits[split] = None
        lines = [self._line(photo, piece) for piece in pieces]
        path.write_text("".join(lines), encoding="utf-8")

    def _line(self, photo: Finished, piece: Piece) -> str:
        shares = np.array(piece.ring) / photo.size
        numbers = " ".join(f"{number:.6f}" for number in shares.ravel())
        return f"{self._index[piece.class_id]} {numbers}\n"

    def close(self) -> None:
        """Write data.yaml; JSON is YAML."""
        lines = [f"{split}: images/{split}\n" for split in self._splits]
        lines += ["names:\n"]
        lines += [
            f"  {at}: {_json(label)}\n" for at, label in enumerate(self._writing.labels.values())
        ]
        (self._folder / "data.yaml").write_text("".join(lines), encoding="utf-8")


class Voc(Writer):
    """A folder of colour masks as CVAT reads them: Segmentation mask 1.1, PASCAL VOC."""

    def __init__(self, path: Path, writing: Writing) -> None:
        for label in writing.labels.values():
            if ":" in label or LINE_BREAKS.search(label):
                raise AnnotationError(
                    f"label {label!r}: labelmap.txt cannot hold a colon or a line break: rename it"
                )
        self._folder, self._files, self._writing = path, _Files(path), writing
        self._lists: dict[str, TextIO] = {}
        (path / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        lines = ["# label:color_rgb:parts:actions\n", "background:0,0,0::\n"]
        lines += [
            "{}:{},{},{}::\n".format(label, *writing.colors[label])
            for label in writing.labels.values()
        ]
        (path / "labelmap.txt").write_text("".join(lines), encoding="utf-8")

    def add(self, photo: Finished, pieces: list[Piece]) -> None:
        if LINE_BREAKS.search(photo.photo):
            raise ValueError("the lists of photos cannot hold a line break: rename it")
        path = self._files.place(photo.photo, "SegmentationClass", suffix=".png")
        picture = np.zeros((*photo.ids.shape, 3), np.uint8)
        for piece in pieces:
            if piece.patch is not None:
                picture[whole(piece.patch, photo.size)] = self._writing.colors[piece.label]
        Image.fromarray(picture).save(path)
        split = photo.split or "default"
        if split not in self._lists:
            place = self._folder / "ImageSets" / "Segmentation" / f"{split}.txt"
            self._lists[split] = place.open("w", encoding="utf-8", errors="surrogateescape")
        self._lists[split].write(f"{PurePosixPath(photo.photo).with_suffix('')}\n")

    def close(self) -> None:
        for stream in self._lists.values():
            stream.close()


WRITERS: dict[str, Callable[[Path, Writing], Writer]] = {
    "coco": Coco,
    "cvat": Cvat,
    "labelstudio": LabelStudio,
    "labelme": LabelMe,
    "yolo-seg": Yolo,
    "voc": Voc,
}
FOLDERS = ("labelme", "yolo-seg", "voc")  # formats of several files
FORMS: dict[str, tuple[Form, ...]] = {
    "coco": ("polygons", "masks"),
    "cvat": ("polygons", "masks"),
    "labelstudio": ("polygons", "masks"),
    "labelme": ("polygons", "masks"),
    "yolo-seg": ("polygons",),
    "voc": ("masks",),
}


@contextmanager
def open_writer(kind: str, out: Path, writing: Writing) -> Iterator[Writer]:
    """Open a writer of a new folder, or of a file that replaces an older one when it is complete.

    Raises AnnotationError for a folder that is not empty, and for a folder in place of a file.
    """
    if kind in FOLDERS:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise AnnotationError(f"-o {out} exists: {kind} needs a new folder")
        with WRITERS[kind](out, writing) as writer:
            yield writer
        return
    if out.is_dir():
        raise AnnotationError(f"-o {out} is a folder: {kind} is one file")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        with WRITERS[kind](part, writing) as writer:
            yield writer
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    if kind == "labelstudio":
        config = out.with_suffix(".config.xml")
        config.write_text(label_studio_config(writing), encoding="utf-8")
