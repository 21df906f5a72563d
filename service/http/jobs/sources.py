"""The sources of a job's photos: a ZIP on the disk, URLs, or files in an allowed folder."""

from __future__ import annotations

import asyncio
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from service.errors import BodyTooLarge, InvalidImage, InvalidRequest
from service.http.bodies import zip_request
from service.http.bodies.urls import Fetcher
from service.http.upload import fetched


class Source(Protocol):
    """Gives the content of a job's photos."""

    async def read(self, number: int, name: str) -> bytes:
        """Return a photo; raises a ServiceError if it cannot be read."""

    def close(self) -> None:
        """Close open files."""


class ZipSource:
    """The members of a ZIP."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._archive = zipfile.ZipFile(path)
        self._members = zip_request.members(self._archive)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    async def read(self, number: int, _name: str) -> bytes:
        """Unpack a member."""
        return await asyncio.to_thread(self._read, self._members[number])

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        _check_size(member.file_size, self._max_bytes)
        with self._lock:
            return zip_request.content(self._archive, member)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


class UrlSource:
    """Photos of other hosts."""

    def __init__(self, fetcher: Fetcher | None) -> None:
        self._fetcher = fetcher

    async def read(self, _number: int, name: str) -> bytes:
        """Fetch a photo."""
        return await fetched(self._fetcher, name)

    def close(self) -> None:
        """Do nothing: no file is open."""


class FolderSource:
    """Files below a folder of the service's host."""

    def __init__(self, root: Path | None, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes

    async def read(self, _number: int, name: str) -> bytes:
        """Read a file."""
        return await asyncio.to_thread(self._read, name)

    def _read(self, name: str) -> bytes:
        path = inside(resolved(self._root), name)
        if not path.is_file():
            raise InvalidImage(f"{name!r}: there is no such file any more")
        _check_size(path.stat().st_size, self._max_bytes)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InvalidImage(f"{name!r} cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Do nothing: no file is open."""


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise BodyTooLarge(f"the photo has {size} bytes, the limit is {limit}: send a smaller one")


def resolved(root: Path | None) -> Path:
    """Return the folder for jobs, links followed; raises InvalidRequest if there is none."""
    if root is None:
        raise InvalidRequest("paths: this service reads no files; it needs --job-inputs")
    return root.resolve()


def inside(folder: Path, name: str) -> Path:
    """Return a path below a resolved folder, links followed; raises InvalidRequest otherwise."""
    try:
        path = (folder / name).resolve()
        there = path.exists()
    except (OSError, ValueError, RuntimeError):
        raise InvalidRequest(f"paths: {name[:200]!r} is no path") from None
    if not path.is_relative_to(folder):
        raise InvalidRequest(f"paths: {name!r} leads out of the folder for jobs")
    if not there:
        raise InvalidRequest(f"paths: there is no {name!r}")
    return path


def files(root: Path | None, names: list[str], most: int) -> list[str]:
    """Return the files that paths name, and all below folders; raises InvalidRequest."""
    folder, found = resolved(root), list[str]()
    if len(names) > most:
        raise InvalidRequest(f"paths: {len(names)} of them, the limit of a job is {most}")
    for name in names:
        for each in _below(inside(folder, name)):
            found.append(_storable(str(each.relative_to(folder))))
            if len(found) > most:
                raise InvalidRequest(f"paths: more than {most} files, the limit of a job")
    if not found:
        raise InvalidRequest("paths: there are no files")
    return found


def _storable(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"paths: the name {name!r} is not UTF-8: rename the file") from None
    return name


def _below(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for each in sorted(path.rglob("*")):  # follows no links to folders
        if each.is_file() and not each.is_symlink() and not each.name.startswith("."):
            yield each
