"""The manifest of a Ray batch: a record for each photo, as JSON lines in files below OUT/manifest.

Object stores cannot append to a file, so records are collected and written in parts; the
last record of a photo counts. A killed run loses the records since its last part, and the
next run does those photos again. `service.client.plan` decides which photos are done again.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from service.client.plan import Wanted, is_unchanged, is_valid, stems
from service.client.records import (
    CLASSES,
    FOLDER,
    SUFFIX,
    Collected,
    Record,
    class_list,
    collected,
)
from service.cluster.storage import File, Place, StoredPhoto

PART_RECORDS = 1000  # write a part when it has this many records,
PART_S = 10.0  # or when its first record is this old


@dataclass(frozen=True, slots=True)
class Todo:
    """A photo to process, with its earlier record."""

    photo: StoredPhoto
    stem: str
    earlier: Record | None  # from an earlier run
    unchanged_if: str | None = None  # keep the earlier record if the photo has this SHA-256

    def json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Todo:
        fields = json.loads(text)
        earlier = fields["earlier"]
        return cls(
            StoredPhoto(**fields["photo"]),
            fields["stem"],
            None if earlier is None else Record.parse(json.dumps(earlier)),
            fields["unchanged_if"],
        )


@dataclass
class Plan:
    """Decides photo by photo what to do, from earlier records and the files in OUT."""

    wanted: Wanted
    records: dict[str, Record]
    sizes: dict[str, int]  # file below OUT -> bytes

    def __post_init__(self) -> None:
        # Stems that differ only in case count as equal, because some file systems ignore case.
        self._stems = {record.stem.casefold() for record in self.records.values()}

    def todo(self, photo: StoredPhoto) -> Todo | Record:
        """Return the work on a photo, or its earlier record if that is still valid."""
        record = self.records.get(photo.name)
        if record is None or not is_valid(record, self.wanted, self.sizes.get):
            return Todo(photo, self._stem(photo, record), record)
        unchanged = is_unchanged(record.origin, photo.size, photo.mtime_ns)
        if unchanged:
            return record
        digest = record.sha256 if unchanged is None else None
        return Todo(photo, record.stem, record, unchanged_if=digest)

    def _stem(self, photo: StoredPhoto, record: Record | None) -> str:
        if record is not None:
            return record.stem
        stem = next(stem for stem in stems(photo.name) if stem.casefold() not in self._stems)
        self._stems.add(stem.casefold())
        return stem


def load(out: Place, files: Iterable[File]) -> Collected:
    """The last record of every photo, from the parts among OUT's files; raises ManifestError."""
    return collected((file.path for file in files), out.read)


class Parts:
    """Writes the parts of a run; `close` writes the last one."""

    def __init__(self, out: Place) -> None:
        self._out = out
        # The names sort in the order of runs, and two concurrent runs use different names.
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(2)}"
        self._number = 0
        self._lines: list[str] = []
        self._began = 0.0

    def put_classes(self, names: Iterable[str]) -> None:
        """Write the list of the model's classes: a report has a column for each; raises OSError."""
        self._out.write(CLASSES, class_list(names))

    def add(self, record: Record) -> None:
        """Add a record, and write a part when it is due; raises OSError."""
        if not self._lines:
            self._began = time.monotonic()
        self._lines.append(record.json())
        if len(self._lines) >= PART_RECORDS or time.monotonic() - self._began >= PART_S:
            self.close()

    def close(self) -> None:
        """Write the remaining records; raises OSError."""
        if not self._lines:
            return
        body = "".join(f"{line}\n" for line in self._lines)
        self._out.write(f"{FOLDER}/{self._run}-{self._number:06}{SUFFIX}", body.encode())
        self._number += 1
        self._lines = []
