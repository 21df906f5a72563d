"""The result of a photo: the record that the batch client and the Ray batch keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from service.client.errors import ManifestError
from service.client.outputs import stays_inside
from service.client.plain import parse_json, sentence

PENDING = "pending"  # in flight, or interrupted by a kill
DONE = "done"  # all outputs in place
REJECTED = "rejected"  # the service refused this photo: the same bytes would fail again
FAILED = "failed"  # for another reason: the next run tries again
STATUSES = (PENDING, DONE, REJECTED, FAILED)

# The Ray batch keeps its records as JSON lines in part files below OUT.
FOLDER, SUFFIX = "manifest", ".jsonl"
CLASSES = f"{FOLDER}/classes.json"  # all classes of the last run's model

MOST = 1 << 63  # SQLite's integers are smaller


@dataclass(frozen=True, slots=True)
class Origin:
    """The photo, model and options that a result was made from."""

    size: int
    mtime_ns: int
    sha256: str | None = None
    model: str | None = None
    model_digest: str | None = None
    max_side: int | None = None
    options: str = ""

    def gives_same_result(self, other: Origin) -> bool:
        """Return whether bytes, model and options are equal."""
        return self._inputs() == other._inputs()

    def _inputs(self) -> tuple[object, ...]:
        return (self.sha256, self.model, self.model_digest, self.max_side, self.options)


@dataclass(frozen=True, slots=True)
class ClassPixels:
    """The pixels of a class in a photo."""

    class_id: int
    name: str
    pixels: int
    confidence: float | None = None  # mean over its pixels, 0 to 1; None: the model has none
    regions: int | None = None  # connected ones; None: not counted

    @classmethod
    def parse(cls, entry: Any) -> Self:
        """Parse an entry of a JSON answer; raises ValueError, KeyError or TypeError."""
        sure = entry.get("confidence")
        if sure is not None and not (isinstance(sure, int | float) and 0 <= sure <= 1):
            raise ValueError(f"{sure!r} is not a confidence")
        regions = entry.get("regions")
        return cls(
            count(entry["id"]),
            sentence(entry["name"]),
            count(entry["pixels"]),
            sure,
            None if regions is None else count(regions),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The result of a photo in a run."""

    name: str  # path below the inputs' base, with slashes
    source: str  # absolute path or key; "x.tar!member" in a tar
    stem: str  # outputs are OUT/stem.mask.png and so on
    size: int
    mtime_ns: int
    sha256: str | None
    model: str | None
    model_digest: str | None
    max_side: int | None = None
    options: str = ""  # of the request, as its query has them
    status: str
    error: str | None = None
    request_id: str | None = None
    outputs: dict[str, int] = field(default_factory=dict)  # file below OUT -> its size in bytes
    classes: tuple[ClassPixels, ...] | None = None  # None: not counted

    @property
    def origin(self) -> Origin:
        return Origin(
            self.size,
            self.mtime_ns,
            self.sha256,
            self.model,
            self.model_digest,
            self.max_side,
            self.options,
        )

    def confidence(self) -> float | None:
        """Return the mean confidence over all counted pixels, 0 to 1."""
        sure = [each for each in self.classes or () if each.confidence is not None]
        pixels = sum(each.pixels for each in sure)
        total = sum(each.pixels * (each.confidence or 0.0) for each in sure)
        return round(total / pixels, 4) if pixels else None

    def regions(self) -> int | None:
        """Return the number of connected regions of all classes; None if they were not counted."""
        found = [each.regions for each in self.classes or ()]
        return sum(each or 0 for each in found) if found and None not in found else None

    def json(self) -> str:
        """Return the record as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a line; raises ValueError or TypeError if it is not a record."""
        fields = parse_json(text)
        if not isinstance(fields, dict):
            raise TypeError("no object")
        counted = fields.get("classes")
        if counted is not None:
            fields["classes"] = tuple(ClassPixels(**entry) for entry in counted)
        record = cls(**fields)
        if record.status not in STATUSES or not all(map(stays_inside, record.files())):
            raise ValueError("an unknown status, or a path that leads out of OUT")
        return record

    def files(self) -> list[str]:
        """Return all paths below OUT that the record names."""
        return [self.stem, *self.outputs]


class Results(Protocol):
    """The results in an OUT folder, for a report."""

    def records(self) -> Iterator[Record]:
        """Return the record of every photo, sorted by name."""

    def class_names(self) -> dict[int, str]:
        """Return all classes of the model and of the records, by id."""


@dataclass(frozen=True)
class Collected:
    """Results held in memory."""

    found: dict[str, Record]
    names: dict[int, str]  # of the model

    def records(self) -> Iterator[Record]:
        yield from (self.found[name] for name in sorted(self.found))

    def class_names(self) -> dict[int, str]:
        counted = (each for record in self.found.values() for each in record.classes or ())
        names = {each.class_id: each.name for each in counted} | self.names
        return dict(sorted(names.items()))


def collected(names: Iterable[str], read: Callable[[str], bytes]) -> Collected:
    """Read the last record of every photo from the part files in OUT.

    `names` are paths below OUT, in order. Raises ManifestError.
    """
    found: dict[str, Record] = {}
    classes: dict[int, str] = {}
    for name in names:
        if name == CLASSES:
            classes = dict(enumerate(_class_list(read(name))))
        elif name.startswith(f"{FOLDER}/") and name.endswith(SUFFIX):
            found |= {record.name: record for record in _lines(name, read(name))}
    return Collected(found, classes)


def class_list(names: Iterable[str]) -> bytes:
    """Return the content of the file CLASSES."""
    return json.dumps({"classes": list(names)}).encode()


def _class_list(content: bytes) -> list[str]:
    try:
        return [sentence(name) for name in parse_json(content)["classes"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"{CLASSES}: not a list of classes: {sentence(error)}") from None


def _lines(name: str, content: bytes) -> Iterator[Record]:
    for line in content.splitlines():
        try:
            yield Record.parse(line.decode())
        except (ValueError, TypeError, AttributeError) as error:
            raise ManifestError(f"{name}: not a record: {error}; use another OUT") from None


def totals(records: Iterable[Record]) -> list[tuple[int, str, int, int]]:
    """Return class id, name, pixels and photos over all records, by id."""
    found: dict[int, tuple[str, int, int]] = {}
    for each in (each for record in records for each in record.classes or ()):
        _, pixels, photos = found.get(each.class_id, ("", 0, 0))
        found[each.class_id] = (each.name, pixels + each.pixels, photos + 1)
    return [(number, *found[number]) for number in sorted(found)]


def count(number: object) -> int:
    """Check that a count fits into SQLite; raises ValueError."""
    if not isinstance(number, int) or not 0 <= number < MOST:
        raise ValueError(f"{number!r} is not a count")
    return number
