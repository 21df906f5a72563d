"""Read ZIP answers that may be broken or hostile, within a limit of bytes."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.client.errors import BadAnswerError

METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # the other decoders take memory
MOST_ENTRIES = 64  # the service sends one for each output
PIECE = 1 << 20
# The shape in the header of a .npy file, a Python dict as text:
# {'descr': '|u1', ..., 'shape': (480, 640), }
SHAPE = re.compile(rb"'shape': \((\d{1,9}), (\d{1,9})\)")


def unpack(content: bytes, names: Container[str], limit: int) -> dict[str, bytes]:
    """Return the entries with these names; raises BadAnswerError if broken or above `limit`."""
    with opened(content) as archive:
        _check(archive, limit)
        return {
            entry.filename: b"".join(_pieces(archive, entry))
            for entry in archive.infolist()
            if entry.filename in names
        }


def label_shape(npz: bytes, limit: int) -> tuple[int, int]:
    """Return (H, W) of the array `labels` in an .npz file; raises BadAnswerError if broken."""
    shape = None
    with opened(npz) as archive:
        _check(archive, limit)
        for entry in archive.infolist():
            for number, piece in enumerate(_pieces(archive, entry)):
                if number == 0 and entry.filename == "labels.npy":
                    shape = SHAPE.search(piece[:1024])
    if shape is None:
        raise BadAnswerError("the .npz has no array `labels` of two dimensions")
    return int(shape[1]), int(shape[2])


@contextmanager
def opened(content: bytes | Path) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP; every error, also while the caller reads from it, becomes BadAnswerError."""
    try:
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type not in METHODS for entry in archive.infolist()):
                raise BadAnswerError("the ZIP has entries that are not compressed by deflate")
            yield archive
    except BadAnswerError:
        raise
    except Exception as error:  # parsers of broken files fail in many ways
        raise BadAnswerError(f"it is not a readable ZIP: {error}") from error


def _check(archive: zipfile.ZipFile, limit: int) -> None:
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise BadAnswerError(
            f"the ZIP has {len(entries)} entries, an answer has at most {MOST_ENTRIES}"
        )
    size = sum(entry.file_size for entry in entries)  # zipfile reads no more than it says here
    if size > limit:
        raise BadAnswerError(f"the ZIP unpacks to {size} bytes, for this photo at most {limit}")


def _pieces(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content in pieces; zipfile checks the CRC at the end."""
    with archive.open(entry) as stream:
        while piece := stream.read(PIECE):
            yield piece
