"""What has become of every photo: JSON lines in part files below OUT/manifest.

An object store takes whole objects only, so records are gathered and put as
parts; the last record of a photo counts. A run that is killed loses the records
since its last part, never their meaning: those photos are simply done again.
The rule by which a photo is done again is the batch client's (`service.client.plan`).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

from service.client.errors import ManifestError
from service.client.manifest import Origin
from service.client.plan import Wanted, is_unchanged, is_valid, stems
from service.cluster.storage import File, Photo, Place

FOLDER = "manifest"
SUFFIX = ".jsonl"
PART_RECORDS = 1000  # a part is put when it has so many records,
PART_S = 10.0  # or when its first one is so old


@dataclass(frozen=True, slots=True)
class Record:
    """One photo's end in one run."""

    name: str
    source: str
    stem: str  # outputs are OUT/stem.mask.png and so on
    size: int
    mtime_ns: int
    sha256: str | None
    model: str
    model_digest: str
    status: str  # done, rejected (the same bytes would fail again) or failed
    error: str | None = None
    outputs: dict[str, int] = field(default_factory=dict)  # file below OUT -> its size in bytes

    def json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read one line; raises ValueError or TypeError when it is none of ours."""
        return cls(**json.loads(text))

    @property
    def origin(self) -> Origin:
        return Origin(self.size, self.mtime_ns, self.sha256, self.model, self.model_digest)


@dataclass(frozen=True, slots=True)
class Todo:
    """A photo to work on, with what is known of it."""

    photo: Photo
    stem: str
    earlier: Record | None  # of a run before
    unchanged_if: str | None = None  # sha256 with which the earlier record still stands

    def json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Todo:
        fields = json.loads(text)
        earlier = fields["earlier"]
        return cls(
            Photo(**fields["photo"]),
            fields["stem"],
            None if earlier is None else Record(**earlier),
            fields["unchanged_if"],
        )


@dataclass
class Plan:
    """Decides on photos one by one; the earlier records and the files in OUT say what is done."""

    wanted: Wanted
    records: dict[str, Record]
    sizes: dict[str, int]  # file below OUT -> bytes

    def __post_init__(self) -> None:
        # Case does not tell stems apart, for disks on which it does not tell files apart.
        self._stems = {record.stem.casefold() for record in self.records.values()}

    def todo(self, photo: Photo) -> Todo | Record:
        """The work on a photo, or the record that stands: done, or rejected as it is."""
        record = self.records.get(photo.name)
        if record is None or not is_valid(record, self.wanted, self.sizes.get):
            return Todo(photo, self._stem(photo, record), record)
        unchanged = is_unchanged(record.origin, photo.size, photo.mtime_ns)
        if unchanged:
            return record
        digest = record.sha256 if unchanged is None else None
        return Todo(photo, record.stem, record, unchanged_if=digest)

    def _stem(self, photo: Photo, record: Record | None) -> str:
        if record is not None:
            return record.stem
        stem = next(stem for stem in stems(photo.name) if stem.casefold() not in self._stems)
        self._stems.add(stem.casefold())
        return stem


def load(out: Place, files: Iterable[File]) -> dict[str, Record]:
    """The last record of every photo, from the parts among OUT's files; raises ManifestError."""
    records: dict[str, Record] = {}
    for file in files:
        if PurePosixPath(file.path).parts[0] != FOLDER or not file.path.endswith(SUFFIX):
            continue
        for line in out.read(file.path).splitlines():
            try:
                record = Record.parse(line.decode())
            except (ValueError, TypeError) as error:
                raise ManifestError(
                    f"{file.path}: not a record: {error}; use another OUT"
                ) from None
            records[record.name] = record
    return records


class Parts:
    """The parts that one run writes; `close` writes the last."""

    def __init__(self, out: Place) -> None:
        self._out = out
        # Sorted by name they are in the order of runs; two runs at once keep out of each
        # other's parts.
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(2)}"
        self._number = 0
        self._lines: list[str] = []
        self._began = 0.0

    def add(self, record: Record) -> None:
        """Keep a record, and put a part if it is time to; raises OSError."""
        if not self._lines:
            self._began = time.monotonic()
        self._lines.append(record.json())
        if len(self._lines) >= PART_RECORDS or time.monotonic() - self._began >= PART_S:
            self.close()

    def close(self) -> None:
        """Put what has been gathered; raises OSError."""
        if not self._lines:
            return
        body = "".join(f"{line}\n" for line in self._lines)
        self._out.write(f"{FOLDER}/{self._run}-{self._number:06}{SUFFIX}", body.encode())
        self._number += 1
        self._lines = []
