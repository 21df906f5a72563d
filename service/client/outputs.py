"""Putting a photo's files in place: each is complete, or not there.

Each file is written under a temporary name in its own folder and renamed. That
is atomic against a killed client. There is no fsync: after a power cut a file
may be short, which the next run notices by the size in the manifest; waiting
for the disk on each of 100,000 files would cost more than redoing those few.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from service.client.errors import ClientError


class OutsideError(ClientError):
    """A path would leave the output folder."""


def write_files(out: Path, stem: str, files: dict[str, bytes]) -> dict[str, int]:
    """Writes OUT/stem.NAME for each of `files`; returns path below OUT -> size in bytes."""
    written = {}
    for name, content in files.items():
        file = f"{stem}.{name}"
        write_atomically(inside(out, file, create=True), content)
        written[file] = len(content)
    return written


def write_atomically(path: Path, content: bytes) -> None:
    """The temporary name is fixed: what a kill leaves behind, the next try overwrites."""
    temporary = path.with_name(f".{path.name}.part")
    # Not written through: a link of this name may lead anywhere.
    temporary.unlink(missing_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)


def remove_files(out: Path, files: Iterable[str]) -> None:
    """Takes away the files of an earlier result that the new one does not have."""
    for file in files:
        inside(out, file).unlink(missing_ok=True)


def inside(out: Path, file: str, *, create: bool = False) -> Path:
    """OUT/file, its folder made on request; OutsideError if that leaves OUT, also by a link."""
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
    """Whether a relative path names a place below its folder; a backslash counts as a slash."""
    parts = re.split(r"[\\/]", file)
    is_drive = os.name == "nt" and ":" in parts[0]
    return bool(parts[0]) and ".." not in parts and "\0" not in file and not is_drive
