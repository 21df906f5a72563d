"""Decide which photos need work: compare earlier results with what this run wants.

The rule for one result is also the rule of the Ray batch (`service.cluster.records`).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.client.inputs import InputPhoto
from service.client.manifest import Manifest, PhotoRow
from service.client.protocol import FILES
from service.client.records import DONE, REJECTED, Origin, Record

LONGEST_NAME = 220  # bytes; with `.probabilities.npz` and a temporary name's ending below 255
UNKNOWN_TIME = -1  # of a photo in a store without modification times
OUTPUT_OF = {file.partition(".")[0]: output for output, file in FILES.items()}


class Decision(enum.Enum):
    """The decision on an input photo."""

    SEND = "send"
    SKIP = "skip"  # its result is complete
    REJECTED = "rejected"  # was refused before, and nothing has changed
    REPEAT = "repeat"  # named twice in this run
    CLASH = "clash"  # another photo of this run has the same name


ALWAYS_TOLD = (Decision.SEND, Decision.SKIP, Decision.REJECTED)
TALLY_WORDS = {
    Decision.SEND: "to send",
    Decision.SKIP: "complete already",
    Decision.REJECTED: "rejected before",
    Decision.REPEAT: "named twice",
    Decision.CLASH: "with the name of another photo",
}


@dataclass(frozen=True)
class Wanted:
    """The requirements of this run for every photo."""

    outputs: tuple[str, ...]
    model: str | None
    model_digest: str | None  # None: unknown; then no photo is done again for its model
    max_side: int | None = None
    options: str = ""  # of the request, as its query has them
    pixels: bool = False  # class pixels in the manifest, for the report
    retry_rejected: bool = False

    def asked(self) -> tuple[str, ...]:
        """Return the outputs to request: pixel counts are in `json`."""
        return tuple(dict.fromkeys((*self.outputs, *(("json",) if self.pixels else ()))))


def decide(photo: InputPhoto, wanted: Wanted, manifest: Manifest, out: Path) -> Decision:
    """Decide on a photo; read its bytes only if its time has changed and its size has not."""
    row = manifest.get(photo.name)
    if row is None:
        return Decision.SEND
    if row.run == manifest.run:
        return Decision.REPEAT if row.source == photo.source else Decision.CLASH
    valid = is_valid(row, wanted, lambda file: _size(out / file))
    if valid and _same_content(row, photo, manifest):
        return Decision.SKIP if row.status == DONE else Decision.REJECTED
    return Decision.SEND


def tally_text(tally: Mapping[str, int]) -> str:
    """Format the counts of a dry run: `10 to send, 2 complete already, 0 rejected before`."""
    return ", ".join(
        f"{tally[decision.value]} {words}"
        for decision, words in TALLY_WORDS.items()
        if tally.get(decision.value) or (decision in ALWAYS_TOLD and decision.value in tally)
    )


def is_valid(result: Record, wanted: Wanted, size_of: Callable[[str], int | None]) -> bool:
    """Return whether an earlier result is still valid, provided the photo's bytes are the same.

    `size_of` returns the size of a file below OUT, or None if it does not exist.
    """
    if not _same_request(result.origin, wanted):
        return False
    if result.status == REJECTED:
        return not wanted.retry_rejected
    return result.status == DONE and _is_complete(result, wanted, size_of)


def is_unchanged(origin: Origin, size: int, mtime_ns: int) -> bool | None:
    """Return whether a photo has the same bytes as `origin`; None: compare its digest."""
    if origin.size != size:
        return False
    return True if origin.mtime_ns == mtime_ns != UNKNOWN_TIME else None


def stems(name: str) -> Iterator[str]:
    """Yield possible stems for a photo's outputs: "a/b.jpg" -> a/b, a/b.jpg, a/b.jpg~2, ...

    A name too long for a file system once it has a new ending becomes its beginning and a digest.
    """
    name = name.lstrip("/")  # a photo whose name clashes is named by its whole path
    path = PurePosixPath(name)
    if len(raw := path.name.encode(errors="surrogatepass")) > LONGEST_NAME:
        beginning = raw[: LONGEST_NAME - 9].decode(errors="ignore")
        name = str(path.with_name(f"{beginning}~{hashlib.sha256(raw).hexdigest()[:8]}"))
    else:
        yield str(path.with_suffix(""))
    yield name
    number = 2
    while True:
        yield f"{name}~{number}"
        number += 1


def output_of(file: str, stem: str) -> str | None:
    """`a/b.result.json` of the stem `a/b` -> `json`; both kinds of overlay are `overlay`."""
    return OUTPUT_OF.get(file.removeprefix(f"{stem}.").partition(".")[0])


def _same_request(origin: Origin, wanted: Wanted) -> bool:
    digests = {origin.model_digest, wanted.model_digest}
    same_model = len(digests) == 1 or None in digests
    was = (origin.model, origin.max_side, origin.options)
    return same_model and was == (wanted.model, wanted.max_side, wanted.options)


def _is_complete(result: Record, wanted: Wanted, size_of: Callable[[str], int | None]) -> bool:
    """Return whether all required files exist with their recorded sizes.

    A power cut may have emptied some. For a report, the classes must be counted too.
    """
    if wanted.pixels and result.classes is None:
        return False
    have = {output_of(file, result.stem) for file in result.outputs}
    there = all(size_of(file) == size for file, size in result.outputs.items())
    return there and have.issuperset(wanted.outputs)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _same_content(row: PhotoRow, photo: InputPhoto, manifest: Manifest) -> bool:
    unchanged = is_unchanged(row.origin, photo.size, photo.mtime_ns)
    if unchanged is not None:
        return unchanged
    try:
        same = row.sha256 == hashlib.sha256(photo.read()).hexdigest()
    except OSError:
        return False
    if same:
        manifest.touch(row.name, photo.mtime_ns)
    return same
