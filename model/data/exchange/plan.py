"""Plan an import: read the labels, choose classes and splits, find the photos.

Nothing is written; the plan's report names all that will not be used.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL import Image

from annotations.draw import ORDERS, Order
from annotations.errors import AnnotationError, Notes
from annotations.files import Reading
from annotations.formats import READERS
from annotations.shapes import Color, Labelled, Labels, Size
from model.data import cityscapes, voc
from model.data.exchange.classes import AS_VOID, Choice, Rest, choose
from model.data.exchange.photos import Photos, unique_names
from model.data.exchange.splits import divide, groups, sequences
from model.data.pairs import VOID, DatasetError
from model.data.photo import opened, turn
from pixels.exif import ON_THEIR_SIDE, TURNS

Exif = Literal["auto", "upright", "stored"]
SHOWN = 20  # problems and notes in the text; import.json has all of them
SAME_SHAPE = 0.01  # sides of a smaller copy agree with the photo's to this share, or to a pixel


@dataclass(frozen=True)
class Wish:
    """The options of an import; the command's options have the same names."""

    format: str
    labels: Path
    images: Path
    out: Path
    classes: tuple[str, ...] = ()
    map: Mapping[str, str] = field(default_factory=dict)
    void: tuple[str, ...] = AS_VOID
    unlabelled: Rest | None = None  # None: as is usual for the format
    others: Literal["unlabelled", "void"] = "unlabelled"
    order: Order | None = None  # likewise
    splits: Mapping[str, float] | None = field(default_factory=lambda: {"train": 0.8, "val": 0.2})
    group_by: str = "none"
    seed: int = 0
    names: tuple[str, ...] = ()
    first_pixel: int = 0
    first_class: int = 0
    boxes: bool = False
    predictions: bool = False
    empty: Literal["skip", "keep"] = "skip"
    exif: Exif = "auto"
    rescale: bool = False
    link: bool = False


@dataclass(frozen=True)
class Item:
    """A photo to import."""

    labelled: Labelled
    path: Path
    size: Size  # (W, H), upright
    turn: int  # the EXIF orientation by which its labels have to be turned; 1: not at all
    content: bool = False  # whether the photo is inside the label file, and nowhere else
    name: str = ""
    split: str = ""
    group: str = ""


@dataclass
class Plan:
    """The photos, classes and splits of an import; `problems` are photos that cannot be used."""

    wish: Wish
    labels: Labels
    choice: Choice
    order: Order
    items: list[Item]
    notes: Notes
    problems: list[str]
    regions: Counter[str]  # by label of the tool

    @property
    def palette(self) -> tuple[Color, ...]:
        """The tool's colours, where every class has its own; else VOC's."""
        colors = [self._color(name) for name in self.choice.classes]
        known = tuple(color for color in colors if color is not None)
        if len({*known}) == len(self.choice.classes):
            return known
        return voc.palette(len(self.choice.classes))

    def _color(self, name: str) -> Color | None:
        merged = [label for label, to in self.wish.map.items() if to == name]
        own = (self.labels.colors.get(label) for label in (name, *merged))
        return next((color for color in own if color is not None), None) or (
            (0, 0, 0) if name == "background" else None
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        splits = Counter(item.split for item in self.items)
        return {
            "format": self.wish.format,
            "labels": str(self.wish.labels),
            "images": str(self.wish.images),
            "classes": list(self.choice.classes),
            "regions": dict(self.regions),
            "drawn_as": {
                label: "void" if number == VOID else self.choice.classes[number]
                for label, number in self.choice.ids.items()
            },
            "left_out": list(self.choice.left_out),
            "unlabelled": "void" if self.choice.fill == VOID else "background",
            "order": self.order,
            "splits": dict(splits),
            "groups": len({item.group for item in self.items}),
            "notes": list(self.notes.lines()),
            "problems": self.problems,
        }

    def to_text(self) -> str:
        """Return the report for reading."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        total, report = sum(self.regions.values()), self.to_json()
        yield f"{self.wish.format}: {len(self.labels.photos)} labelled photos, {total} regions"
        for number, name in enumerate(self.choice.classes):
            yield f"  class {number} {name}{self._sources(number, name)}"
        if void := self._sources(VOID, ""):
            yield f"  void{void}"
        for label in self.choice.left_out:
            yield f"  not drawn: {label} ({self.regions[label]} regions): not in --classes"
        yield f"pixels without a label: {report['unlabelled']}"
        yield f"where shapes overlap: {ORDERS[self.order]}"
        for split, count in sorted(report["splits"].items()):
            inside = len({item.group for item in self.items if item.split == split})
            yield f"split {split}: {count} photos, {inside} groups"
        yield from self._shown("note", report["notes"])
        yield from self._shown("problem", self.problems)

    def _sources(self, number: int, name: str) -> str:
        labels = [label for label, to in self.choice.ids.items() if to == number]
        parts = [
            f"{self.regions[label]} regions" + (f" of {label}" if label != name else "")
            for label in labels
        ]
        return f": {', '.join(parts)}" if parts else ""

    @staticmethod
    def _shown(what: str, lines: list[str]) -> Iterator[str]:
        yield from (f"{what}: {line}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"{what}: ... and {len(lines) - SHOWN} more (--json lists them all)"


def make_plan(wish: Wish) -> Plan:
    """Read the labels, choose classes and splits, find the photos. Raises DatasetError."""
    notes = Notes()
    problems: list[str] = []
    labels = _read(wish, notes)
    city = wish.format == "cityscapes-like"
    ignored = {each.name for each in cityscapes.LABELS if each.train_id == VOID} if city else ()
    choice = choose(
        labels.all_names(),
        chosen=wish.classes,
        mapping=wish.map,
        void=(*wish.void, *ignored),
        unlabelled=wish.unlabelled or usual_unlabelled(wish.format),
        others=wish.others,
    )
    regions = Counter(region.label for photo in labels.photos for region in photo.regions)
    items = list(_items(wish, labels, notes, problems))
    order = wish.order or usual_order(wish.format)
    items = _named(_divided(items, wish, notes, problems), wish)
    return Plan(wish, labels, choice, order, items, notes, problems, regions)


def usual_unlabelled(kind: str) -> Rest:
    """Return the class of unlabelled pixels: void for formats that colour every pixel."""
    return "void" if kind in ("cityscapes-like", "voc-colours") else "background"


def usual_order(kind: str) -> Order:
    """Return which shape is on top: the file's order for tools whose users can order shapes."""
    return "area" if kind in ("coco", "yolo-seg") else "file"


def _read(wish: Wish, notes: Notes) -> Labels:
    names, colors = wish.names, {}
    if wish.format == "cityscapes-like":
        names = names or tuple(label.name for label in cityscapes.LABELS)
        colors = {label.name: label.color for label in cityscapes.LABELS}
    if wish.format == "voc-colours":
        named = names or voc.CLASSES
        colors = dict(zip(named, voc.palette(len(named)), strict=True)) | {"void": voc.VOID_COLOR}
    reading = Reading(
        first_pixel=wish.first_pixel,
        first_class=wish.first_class,
        names=names,
        colors=colors,
        boxes=wish.boxes,
        predictions=wish.predictions,
    )
    try:
        return READERS[wish.format](wish.labels, reading, notes)
    except AnnotationError as error:
        raise DatasetError(str(error)) from None


def _items(wish: Wish, labels: Labels, notes: Notes, problems: list[str]) -> Iterator[Item]:
    """The photos that can be used; the others become problems or notes."""
    photos = Photos(wish.images)
    seen: dict[Path, str] = {}
    for labelled in labels.photos:
        if not labelled.regions and not labelled.problem and wish.empty == "skip":
            notes.add(
                "photo without a region (--empty keep makes it all unlabelled)", labelled.photo
            )
            continue
        try:
            if labelled.problem:
                raise DatasetError(f"{labelled.photo}: {labelled.problem}")
            item = _embedded(labelled, photos, notes) or _item(
                labelled, photos.find(labelled.photo), wish, notes
            )
            if item.path in seen:
                raise DatasetError(f"{labelled.photo}: labelled twice, also as {seen[item.path]}")
            seen[item.path] = labelled.photo
            yield item
        except (DatasetError, OSError) as error:
            problems.append(str(error))


def _embedded(labelled: Labelled, photos: Photos, notes: Notes) -> Item | None:
    """Return a photo that only the label file has, where it is upright; None if there is a file."""
    if labelled.content is None or labelled.photo in photos:
        return None
    try:
        with Image.open(io.BytesIO(labelled.content())) as picture:
            size, kind = picture.size, str(picture.format)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{labelled.photo}: the photo in the label file: {error}") from None
    if labelled.size not in (None, size):
        raise DatasetError(f"{labelled.photo}: its labels are not for the photo in their file")
    notes.add("photo that only the label file has: it is taken from there", labelled.photo)
    inner = PurePosixPath(labelled.photo.replace("\\", "/"))
    parts = [part for part in inner.parts if part not in ("..", "/")]
    suffix = ".jpg" if kind == "JPEG" else f".{kind.lower()}"
    path = photos.root.joinpath(*parts).with_suffix(suffix)
    return Item(labelled, path, size, 1, content=True)


def _item(labelled: Labelled, path: Path, wish: Wish, notes: Notes) -> Item:
    """Compare the declared size with the photo's. Raises DatasetError if they disagree."""
    stored, orientation = _header(path)
    upright = (stored[1], stored[0]) if orientation in ON_THEIR_SIDE else stored
    declared = labelled.size or (stored if wish.exif == "stored" else upright)
    turned = orientation in TURNS
    as_stored = wish.exif == "stored" or (wish.exif == "auto" and declared != upright)
    if turned and as_stored and _agrees(declared, stored, wish):
        notes.add("photo that its EXIF data turns: its labels are turned with it", path.name)
        return Item(labelled, path, upright, orientation)
    if turned and wish.exif == "auto" and upright == stored:
        notes.add(
            f"photo with EXIF orientation {orientation}, whose size does not tell how it was "
            "labelled: taken as turned upright (--exif stored: as the file stores it)",
            path.name,
        )
    if _agrees(declared, upright, wish):
        return Item(labelled, path, upright, 1)
    scaled = _same_shape(declared, upright)
    raise DatasetError(
        f"{labelled.photo}: its labels are for {declared[0]} x {declared[1]} pixels, the photo has "
        f"{upright[0]} x {upright[1]}" + (" (--rescale scales the labels)" if scaled else "")
    )


def _agrees(declared: Size, size: Size, wish: Wish) -> bool:
    return declared == size or (wish.rescale and _same_shape(declared, size))


def _same_shape(one: Size, other: Size) -> bool:
    """Whether two sizes have the same proportions, to a pixel or a hundredth."""
    if min(one) < 1:  # some tools declare 0 x 0
        return False
    scale = other[0] / one[0]
    return abs(one[1] * scale - other[1]) <= max(1.0, scale, SAME_SHAPE * other[1])


def _header(path: Path) -> tuple[Size, int]:
    """(W, H) of a photo as stored, and its EXIF orientation."""
    with opened(path) as picture:
        return picture.size, turn(picture)


def _divided(items: list[Item], wish: Wish, notes: Notes, problems: list[str]) -> list[Item]:
    """Give every photo its group and split."""
    paths = [item.path.relative_to(wish.images).as_posix() for item in items]
    grouped = groups(paths, wish.group_by)
    if wish.group_by == "none" and (found := sequences(paths)):
        for name in found:
            notes.add(
                "name that numbered photos share; if they are frames of one video, keep them "
                "together by --group-by folder or --group-by '^(.*?)[-_]?[0-9]+$'",
                name,
            )
    if wish.splits is None:
        without = [item.labelled.photo for item in items if item.labelled.split is None]
        problems.extend(f"{photo}: the labels name no split for it" for photo in without)
        return [
            replace(item, split=item.labelled.split, group=group)
            for item, group in zip(items, grouped, strict=True)
            if item.labelled.split is not None
        ]
    if not items:
        return []
    split_of = divide(grouped, wish.splits, wish.seed)
    return [
        replace(item, split=split, group=group)
        for item, split, group in zip(items, split_of, grouped, strict=True)
    ]


def _named(items: list[Item], wish: Wish) -> list[Item]:
    names = unique_names([item.path for item in items], wish.images)
    return [replace(item, name=name) for item, name in zip(items, names, strict=True)]
