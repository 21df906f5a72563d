"""Pack the photos of a job into a ZIP, and read the ZIP of its results."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.client.errors import BadAnswerError, UsageError
from service.client.inputs import InputPhoto, Inputs
from service.client.plain import parse_json, sentence
from service.client.uploads import prepare

RESULTS = "results.json"
MOST_BYTES = 256 << 20  # of results.json: some 300 bytes for each photo
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date that a ZIP can store


@contextmanager
def packed(inputs: Inputs, max_side: int | None) -> Iterator[tuple[Path, int]]:
    """Give a temporary ZIP of all photos, and their number; raises UsageError or OSError."""
    with tempfile.TemporaryDirectory(prefix="deeplab-") as folder:
        path = Path(folder) / "photos.zip"
        seen: dict[str, str] = {}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for photo in inputs:
                if _is_new(photo, seen):
                    body = prepare(photo, max_side).body
                    archive.writestr(zipfile.ZipInfo(photo.name.lstrip("/"), DATE), body)
        yield path, len(seen)


def _is_new(photo: InputPhoto, seen: dict[str, str]) -> bool:
    """Return whether a photo is not yet packed; raises UsageError for two of the same name."""
    before = len(seen)
    if photo.url is not None:
        raise UsageError(f"{photo.source}: a job takes files or URLs, not both: make two jobs")
    earlier = seen.setdefault(photo.name, photo.source)
    if earlier != photo.source:
        raise UsageError(
            f"{earlier} and {photo.source} have the same name: set --base to a common folder"
        )
    return len(seen) > before


def failures(path: Path) -> list[tuple[str, str]]:
    """Return name and reason of the photos without a result; raises BadAnswerError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(RESULTS).file_size > MOST_BYTES:
                raise ValueError("it is too long")
            found = parse_json(archive.read(RESULTS))["results"]
        return [
            (sentence(each["file"]), sentence(each["problem"]["detail"]))
            for each in found
            if each["status"] != 200
        ]
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BadAnswerError(f"{path} has no usable {RESULTS}: {sentence(error)}") from error
