"""Find and read label files; errors name the file and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotations.errors import AnnotationError, Notes
from annotations.shapes import Color, Labels


@dataclass(frozen=True)
class Reading:
    """Options for the meaning of numbers in label files."""

    first_pixel: int = 0  # the coordinate of the outer corner of the first pixel
    first_class: int = 0  # the number of the first class, in files that hold numbers
    names: tuple[str, ...] = ()  # of the classes, where the files do not name them
    colors: Mapping[str, Color] = field(default_factory=dict)  # likewise, for masks of colours
    boxes: bool = False  # also take boxes that were drawn instead of an outline
    predictions: bool = False  # also use a model's shapes if no person drew any


Reader = Callable[[Path, Reading, Notes], Labels]


def label_files(where: Path, *suffixes: str, at_most: int | None = None) -> list[Path]:
    """The file itself, or the files of a folder with one of the suffixes, sorted.

    Raises AnnotationError if no file has one of them, or more than `at_most`.
    """
    if where.suffix.lower() == ".zip":
        raise AnnotationError(f"{where} is an archive: unpack it, and name the folder")
    if where.is_file():
        return [where]
    if not where.is_dir():
        raise AnnotationError(f"{where} does not exist")
    found = sorted(
        path
        for path in where.rglob("*")
        if path.name.lower().endswith(suffixes)
        and not path.name.startswith(".")  # macOS leaves a ._NAME beside each file it copies
        and path.is_file()
    )
    if not found:
        raise AnnotationError(f"{where} holds no {' or '.join(suffixes)} file")
    if at_most is not None and len(found) > at_most:
        raise AnnotationError(f"{where} holds {len(found)} {suffixes[0]} files: name one of them")
    return found


def load_text(path: Path) -> str:
    """Read a text file, with or without a byte order mark; raises AnnotationError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise AnnotationError(f"{path} is no text in UTF-8: {error}") from None


def load_json(path: Path) -> Any:
    """Parse a JSON file; raises AnnotationError."""
    text = load_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is no JSON: {error}") from None


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name tells: `instances_val2017` -> val."""
    words = "".join(letter if letter.isalpha() else " " for letter in name.lower()).split()
    meanings = {"train": "train", "training": "train", "val": "val", "valid": "val"}
    meanings |= {"validation": "val", "dev": "val", "test": "test", "testing": "test"}
    return next((meanings[word] for word in words if word in meanings), None)
