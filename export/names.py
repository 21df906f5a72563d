"""Read the class names of a foreign network: of a known data set, a file, or a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.data import camvid, cityscapes, voc
from model.data.pairs import Color
from model.text import TextError, read_text

KNOWN: dict[str, tuple[tuple[str, ...], tuple[Color, ...]]] = {
    "voc": (voc.CLASSES, voc.palette(len(voc.CLASSES))),
    "cityscapes": (cityscapes.CLASSES, cityscapes.PALETTE),
    "camvid": (camvid.CLASSES, camvid.PALETTE),
}


class NamesError(ValueError):
    """No class names can be read; the message says why."""


def read_names(text: str) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Return classes and colours: of a data set, from a file, or `sky,road,tree`.

    A file has one name a line, or is JSON: a list of names, or an object with `id2label`,
    like the config.json of Hugging Face's models. Without a data set, the colours are VOC's.
    """
    if text in KNOWN:
        return KNOWN[text]
    names = _from_file(Path(text)) if Path(text).is_file() else _split(text)
    if len(names) < 2:
        raise NamesError(
            f"{text!r} names {len(names)} class: name a file that exists, two or more classes as "
            f"sky,road or one of {', '.join(KNOWN)}"
        )
    return tuple(names), voc.palette(len(names))


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _from_file(path: Path) -> list[str]:
    try:
        text = read_text(path)
    except TextError as error:
        raise NamesError(str(error)) from None
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return _from_json(json.loads(text))
    except ValueError as error:
        raise NamesError(f"{path}: {error}") from None


def _from_json(found: Any) -> list[str]:
    labels = found.get("id2label") if isinstance(found, dict) else found
    if isinstance(labels, dict):
        by_id = {int(key): name for key, name in labels.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError("id2label has gaps: it must number the classes from 0")
        labels = [by_id[number] for number in range(len(by_id))]
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise ValueError("neither a list of names nor an object with id2label")
    return labels
