"""Which photos still need work: a photo's row in the manifest against what is wanted now."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.client.inputs import Photo
from service.client.manifest import DONE, REJECTED, Manifest, Row
from service.client.protocol import FILES


class Decision(enum.Enum):
    """What becomes of an enumerated photo."""

    SEND = "send"
    SKIP = "skip"  # its complete result is there
    REJECTED = "rejected"  # refused before, nothing has changed since
    REPEAT = "repeat"  # named twice in this run
    CLASH = "clash"  # another photo of this run has the same name


@dataclass(frozen=True)
class Wanted:
    """What every photo of this run must have."""

    outputs: tuple[str, ...]
    pixels: bool  # class pixels in the manifest, for the report
    model: str | None
    model_digest: str | None  # None: the service tells none, then nothing is redone for it
    max_side: int | None
    options: str = ""  # of the request, as its query has them
    retry_rejected: bool = False

    def asked(self) -> tuple[str, ...]:
        """The outputs to ask the service for: pixel counts come in `json`."""
        return tuple(dict.fromkeys((*self.outputs, *(("json",) if self.pixels else ()))))


def decide(photo: Photo, wanted: Wanted, manifest: Manifest, out: Path) -> Decision:
    """Reads the photo's bytes only if its time has changed and its size has not."""
    row = manifest.get(photo.name)
    if row is None:
        return Decision.SEND
    if row.run == manifest.run:
        return Decision.REPEAT if row.source == photo.source else Decision.CLASH
    if _still_stands(row, wanted, manifest, out) and _same_content(row, photo, manifest):
        return Decision.SKIP if row.status == DONE else Decision.REJECTED
    return Decision.SEND


def stems(name: str) -> Iterator[str]:
    """Where a photo's outputs may go, best first: "a/b.jpg" -> a/b, a/b.jpg, a/b.jpg~2, ..."""
    name = name.lstrip("/")  # a photo whose name clashes is named by its whole path
    yield str(PurePosixPath(name).with_suffix(""))
    yield name
    number = 2
    while True:
        yield f"{name}~{number}"
        number += 1


def _still_stands(row: Row, wanted: Wanted, manifest: Manifest, out: Path) -> bool:
    """Whether the row is what the photo would get again, if it has not changed."""
    if not _same_recipe(row, wanted):
        return False
    if row.status == REJECTED:
        return not wanted.retry_rejected
    return row.status == DONE and _is_complete(row, wanted, manifest, out)


def _same_recipe(row: Row, wanted: Wanted) -> bool:
    same_model = row.model_digest == wanted.model_digest or None in {
        row.model_digest,
        wanted.model_digest,
    }
    was = (row.model, row.max_side, row.options)
    return same_model and was == (wanted.model, wanted.max_side, wanted.options)


def _is_complete(row: Row, wanted: Wanted, manifest: Manifest, out: Path) -> bool:
    """All wanted files are there in their recorded size (a power cut may have emptied some)."""
    have = {_output_of(row.stem, file) for file in row.outputs}
    if not have.issuperset(wanted.outputs):
        return False
    if wanted.pixels and not manifest.has_pixels(row.name):
        return False
    return all(_size(out / file) == size for file, size in row.outputs.items())


def _output_of(stem: str, file: str) -> str | None:
    kind = file.removeprefix(f"{stem}.").partition(".")[0]
    return next((output for output, name in FILES.items() if name.partition(".")[0] == kind), None)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _same_content(row: Row, photo: Photo, manifest: Manifest) -> bool:
    if row.size != photo.size:
        return False
    if row.mtime_ns == photo.mtime_ns:
        return True
    try:
        same = row.sha256 == hashlib.sha256(photo.read()).hexdigest()
    except OSError:
        return False
    if same:
        manifest.touch(row.name, photo.mtime_ns)
    return same
