"""Unpack the publishers' tar and zip archives; an interrupted run continues where it stopped."""

from __future__ import annotations

import gzip
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from model import files
from model.data.pairs import DatasetError

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
# From a member's name to its place below the destination; None leaves it out.
Place = Callable[[str], str | None]


@contextmanager
def naming(archive: Path) -> Iterator[None]:
    """Turn the errors of a damaged archive into a DatasetError that names it."""
    try:
        yield
    except DAMAGE as error:
        raise DatasetError(f"{archive} is damaged ({error}): download it again") from error


def unpack(archive: Path, destination: Path, place: Place) -> int:
    """Write the members that `place` wants; returns how many were new.

    A file that exists with its full size is kept. Files are written under another name
    and renamed, so that none is ever incomplete. Raises DatasetError for a damaged
    archive and for a member that would be written outside of `destination`.
    """
    new = 0
    with naming(archive):
        for name, size, stream in members(archive):
            wanted = place(name)
            if wanted is None:
                continue
            target = destination / wanted
            if not target.resolve().is_relative_to(destination.resolve()):
                raise DatasetError(f"{archive}: member {name!r} leads out of {destination}")
            if not (target.is_file() and target.stat().st_size == size):
                _write(stream, target)
                new += 1
    return new


def members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every file in an archive, in its order."""
    walk = _zip_members if archive.suffix == ".zip" else _tar_members
    shown = sys.stderr.isatty()
    yield from tqdm(walk(archive), desc=archive.name, unit="file", disable=not shown)


def _zip_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            # macOS adds a shadow of every file.
            if not info.is_dir() and not info.filename.startswith("__MACOSX/"):
                with file.open(info) as stream:
                    yield info.filename, info.file_size, stream


def _tar_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    # Streaming: what is compressed is read once, in order.
    with tarfile.open(archive, "r|*") as file:
        for info in file:
            stream = file.extractfile(info) if info.isfile() else None
            if stream is not None:
                yield info.name, info.size, stream


def _write(stream: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not durable: thousands of files, and the next run compares each file's size.
    with files.replacing(target, durable=False) as partial, partial.open("wb") as out:
        shutil.copyfileobj(stream, out)
