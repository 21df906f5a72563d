"""Choose photos of a run by their classes, and copy them."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterable
from pathlib import Path

from service.client import where
from service.client.outputs import OutsideError, inside, replacing
from service.client.records import DONE, Record, Results


def chosen(results: Results, expression: str) -> list[Record]:
    """Return the finished photos that an expression is true for; raises UsageError."""
    names = list(results.class_names().values())
    test = where.parse(expression, names)
    return [
        record
        for record in results.records()
        if record.status == DONE and record.classes is not None and test(values(record, names))
    ]


def values(record: Record, names: Iterable[str]) -> dict[str, float]:
    """Return the share of each class, by its name in lower case, and the mean confidence.

    Classes of one name count together.
    """
    found = dict.fromkeys((name.lower() for name in names), 0.0)
    total = sum(each.pixels for each in record.classes or ()) or 1
    for each in record.classes or ():
        found[each.name.lower()] = found.get(each.name.lower(), 0.0) + each.pixels / total
    sure = record.confidence()
    return found if sure is None else {**found, where.CONFIDENCE: sure}


def copied(records: Iterable[Record], folder: Path) -> list[str]:
    """Copy photos into a folder, by their names; return a reason for each that failed."""
    failed = []
    for record in records:
        source = Path(record.source)
        try:
            if not source.is_file():  # "x.tar!member", a key of a bucket, or gone
                raise FileNotFoundError("no such file")
            folder.mkdir(parents=True, exist_ok=True)
            target = inside(folder, record.name, create=True)
            if not target.exists():
                with replacing(target, durable=False) as part:
                    shutil.copyfile(source, part)
            elif not filecmp.cmp(source, target, shallow=False):
                raise FileExistsError("another file of this name is there: choose an empty folder")
        except (OSError, OutsideError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            failed.append(f"not copied: {record.source}: {reason}")
    return failed
