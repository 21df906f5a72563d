"""CVAT for images 1.1: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from annotations.errors import AnnotationError, Notes
from annotations.files import Reading, label_files, split_of
from annotations.runs import cvat_pixels
from annotations.shapes import (
    Color,
    Labelled,
    Labels,
    Outline,
    Patch,
    Region,
    Shape,
    box,
    ellipse,
    ring,
)

NO_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def read(where: Path, reading: Reading, notes: Notes) -> Labels:
    """Read the file, or every XML file of a folder. Photos keep the subset as their split."""
    labels = Labels([])
    for path in label_files(where, ".xml"):
        try:
            for element in _elements(path):
                _add(labels, element, reading, notes)
        except ET.ParseError as error:
            raise AnnotationError(f"{path} is no XML: {error}") from None
        except (KeyError, ValueError) as error:
            raise AnnotationError(f"{path} is not CVAT for images 1.1: {error!r}") from None
    if not labels.photos:
        raise AnnotationError(f"{where} has no <image>: export the task as CVAT for images 1.1")
    return labels


def _elements(path: Path) -> Iterator[ET.Element]:
    """Yield the labels and images of a file, and forget each afterwards."""
    for _, element in ET.iterparse(path):
        if element.tag == "track":
            raise AnnotationError(f"{path} is CVAT for video: export it as CVAT for images 1.1")
        if element.tag in ("label", "image"):
            yield element
            if element.tag == "image":
                element.clear()


def _add(labels: Labels, element: ET.Element, reading: Reading, notes: Notes) -> None:
    if element.tag == "image":
        labels.photos.append(_photo(element, reading, notes))
    elif (name := element.findtext("name")) is not None:
        labels.names = tuple(dict.fromkeys([*labels.names, name]))
        if (color := _color(element.findtext("color") or "")) is not None:
            labels.colors[name] = color


def _color(text: str) -> Color | None:
    """#rrggbb as numbers."""
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        return None
    return red, green, blue


def _photo(image: ET.Element, reading: Reading, notes: Notes) -> Labelled:
    name = image.attrib["name"]
    regions = []
    for element in image:
        try:
            shape = _shape(element, reading)
        except (ValueError, KeyError) as error:
            notes.add(f"{element.tag} of {element.get('label')}: {error}", name)
            continue
        layer = int(element.get("z_order", 0))
        regions.append(Region(element.attrib["label"], shape, layer))
    size = (int(image.attrib["width"]), int(image.attrib["height"]))
    return Labelled(name, size, tuple(regions), split_of(image.get("subset", "")))


def _shape(element: ET.Element, reading: Reading) -> Shape:
    element.attrib["label"]  # every shape has one
    if element.tag in NO_AREA:
        raise ValueError("it has no area")

    def number(key: str) -> float:
        return float(element.attrib[key])

    turn = float(element.get("rotation", 0))
    first = reading.first_pixel
    if element.tag == "polygon":
        pairs = element.attrib["points"].replace(";", ",").split(",")
        return Outline((ring([float(text) for text in pairs], first),))
    if element.tag == "box":
        left, top, right, bottom = (number(key) - first for key in ("xtl", "ytl", "xbr", "ybr"))
        return Outline((box(left, top, right, bottom, turn=turn),))
    if element.tag == "ellipse":
        x, y = number("cx") - first, number("cy") - first
        return Outline((ellipse(x, y, number("rx"), number("ry"), turn=turn),))
    if element.tag == "mask":
        return _mask(element)
    raise ValueError("this kind of shape is unknown")


def _mask(element: ET.Element) -> Patch:
    left, top, width, height = (
        int(element.attrib[key]) for key in ("left", "top", "width", "height")
    )
    counts = np.fromstring(element.attrib["rle"], np.int64, sep=",")
    return Patch(cvat_pixels(counts.tolist(), width, height), left, top)
