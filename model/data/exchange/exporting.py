"""Write a data set as the file of a label tool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from annotations.errors import Notes
from annotations.options import VOID, ClassList
from annotations.writers import open_writer
from annotations.writing import Finished, Piece, Writing, pieces
from model.data.check import each
from model.data.dataset import Dataset
from model.data.pairs import DatasetError, Pair, read_mask

VOID_NAME = "void"


def class_list(dataset: Dataset, *, void: bool) -> ClassList:
    """Return the classes of a set, with void as a separate label if wanted."""
    names = dict(enumerate(dataset.classes)) | ({VOID: VOID_NAME} if void else {})
    return ClassList(names, dict(enumerate(dataset.palette)))


def export(
    sets: Sequence[Dataset], kind: str, writing: Writing, out: Path, notes: Notes
) -> tuple[int, int, list[str]]:
    """Write the photos of one set or several splits; returns photos, shapes and problems."""
    photos, shapes, problems = 0, 0, []
    with open_writer(kind, out, writing) as writer:
        for dataset in sets:
            base = Path(os.path.commonpath([pair.image.parent for pair in dataset.pairs]))
            work = partial(_finished, dataset, base, writing)
            for pair, result in zip(dataset.pairs, each(work, dataset.pairs, "photo"), strict=True):
                if isinstance(result, str):
                    problems.append(f"{pair.name}: {result}")
                    continue
                photo, found, own = result
                for what, (count, first) in own.found.items():
                    for _ in range(count):
                        notes.add(what, first)
                try:
                    writer.add(photo, found)
                except ValueError as error:
                    problems.append(f"{pair.name}: {error}")
                    continue
                photos, shapes = photos + 1, shapes + len(found)
    return photos, shapes, problems


def _finished(
    dataset: Dataset, base: Path, writing: Writing, pair: Pair
) -> tuple[Finished, list[Piece], Notes] | str:
    """Read one mask and find its shapes, or return what is wrong with it."""
    notes = Notes()
    try:
        ids = read_mask(pair.mask, classes=len(dataset.classes), void=dataset.void)
        name = pair.image.relative_to(base).as_posix()
        photo = Finished(name, ids, split=dataset.split)
        return photo, pieces(photo, writing, notes), notes
    except (DatasetError, OSError, ValueError) as error:
        return str(error)
