"""Write result files atomically: each is complete or absent.

A file is written beside its target under a temporary name and renamed, which a
killed client cannot interrupt halfway. A photo's files are not flushed to the
disk: after a power cut one may be short, which the next run notices by the size
in the manifest. Waiting for the disk on each of 100,000 files would cost more
than redoing those few.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.client.errors import ClientError

LONGEST_NAME = 255  # bytes, on most file systems
PART = ".part"  # suffix of temporary names, which also begin with a dot


class OutsideError(ClientError):
    """A path would leave the output folder."""


def write_files(out: Path, stem: str, files: dict[str, bytes]) -> dict[str, int]:
    """Write OUT/stem.NAME for each of `files`; return path below OUT -> size in bytes."""
    written = {}
    for name, content in files.items():
        file = f"{stem}.{name}"
        with replacing(inside(out, file, create=True), durable=False) as temporary:
            temporary.write_bytes(content)
        written[file] = len(content)
    return written


@contextmanager
def replacing(path: Path, *, durable: bool = True, writer: str = "") -> Iterator[Path]:
    """Give a path to write to; rename it to `path` when the block ends without an error.

    `durable`: wait until the file and its name are on the disk. `writer` is part of
    the temporary name: set it where several processes may write the same file.
    """
    name = f".{path.name}{writer}{PART}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()
        name = f".{digest}{writer}{PART}"
    temporary = path.with_name(name)
    temporary.unlink(missing_ok=True)  # a link of this name may lead anywhere
    try:
        yield temporary
        if durable:
            _flush(temporary, os.O_RDWR)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        with suppress(OSError):  # some file systems, and Windows, cannot flush folders
            _flush(path.parent, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_files(out: Path, files: Iterable[str]) -> None:
    """Remove files of an earlier result that the new one does not have."""
    for file in files:
        inside(out, file).unlink(missing_ok=True)


def inside(out: Path, file: str, *, create: bool = False) -> Path:
    """Return OUT/file and create its folder if requested; raises OutsideError if it leaves OUT."""
    if not stays_inside(file):
        raise OutsideError(f"{file!r} is not below {out}")
    folder = (out / file).parent
    home = out.resolve()
    if not folder.resolve().is_relative_to(home):  # before mkdir, which follows links too
        raise OutsideError(f"{folder} leads to {folder.resolve()}, outside of {out}")
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return out / file


def stays_inside(file: str) -> bool:
    """Return whether a relative path stays below its folder; a backslash counts as a slash."""
    parts = re.split(r"[\\/]", file)
    is_drive = os.name == "nt" and ":" in parts[0]
    return bool(parts[0]) and ".." not in parts and "\0" not in file and not is_drive
