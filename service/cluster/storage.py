"""Read photos from, and write results to, folders on disk and in object stores.

pyarrow's own file systems for `s3://`, `gs://` and `abfs://`, fsspec's for every
other scheme. A file is complete or not there: on a disk it is written under a
temporary name and renamed, in an object store it is one put, which shows nothing
before its end.
"""

from __future__ import annotations

import errno
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pyarrow import ArrowException, fs

from service.client.errors import UsageError
from service.client.inputs import GLOB_SIGNS, Inputs, Others, is_image
from service.client.outputs import PART, OutsideError, inside, replacing
from service.client.plan import UNKNOWN_TIME

OF_ARROW = ("s3", "gs", "gcs", "abfs", "abfss")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a place."""

    path: str  # below the root
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """An input; `name` is its path below the inputs' base, which the outputs mirror."""

    name: str
    source: str  # its path in the file system
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Place:
    """A folder in a file system. It can be sent to other processes."""

    system: fs.FileSystem
    root: str

    @property
    def is_local(self) -> bool:
        return str(self.system.type_name) == "local"

    def read(self, name: str) -> bytes:
        """Read a file below the root; raises OSError."""
        with self.system.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Write a file completely or not at all; raises OSError."""
        if self.is_local:
            _write_local(self._inside(name, create=True), content)
            return
        # Not a `with`: after an error it would close the stream and publish an incomplete file.
        stream = self.system.open_output_stream(self._path(name))
        stream.write(content)
        stream.close()

    def remove(self, name: str) -> None:
        """Remove a file if it exists; raises OSError."""
        if self.is_local:
            self._inside(name).unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            self.system.delete_file(self._path(name))

    def files(self, folder: str = "") -> Iterator[File]:
        """Yield every file below the root or one of its folders, sorted by path."""
        start = self._path(folder)
        selector = fs.FileSelector(start, recursive=True, allow_not_found=True)
        found = [info for info in self.system.get_file_info(selector) if info.is_file]
        for info in sorted(found, key=lambda info: str(info.path)):
            yield File(_below(info.path, self.root), info.size, _mtime_ns(info))

    def sweep(self, names: list[str]) -> None:
        """Remove temporary files of killed writers among these names."""
        for name in names:
            if PurePosixPath(name).name.startswith(".") and name.endswith(PART):
                self.remove(name)

    def _inside(self, name: str, *, create: bool = False) -> Path:
        """Return the path of a file on disk; raises OSError if a link leads out of the root."""
        try:
            return inside(Path(self.root or "/"), name, create=create)
        except OutsideError as error:
            raise OSError(errno.EINVAL, str(error)) from None

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def place(where: str) -> Place:
    """Return the folder for a path or URI; raises UsageError."""
    scheme = urlsplit(where).scheme if "://" in where else "file"
    if scheme == "file":
        path = unquote(urlsplit(where).path) if "://" in where else where
        return Place(fs.LocalFileSystem(), str(Path(path).absolute()).rstrip("/"))
    try:
        system, root = fs.FileSystem.from_uri(where) if scheme in OF_ARROW else _of_fsspec(where)
    except (ArrowException, ValueError, ImportError, OSError) as error:
        raise UsageError(f"{where}: {error}") from None
    return Place(system, root.rstrip("/"))


def _of_fsspec(where: str) -> tuple[fs.FileSystem, str]:
    from fsspec.core import url_to_fs  # noqa: PLC0415 - only for schemes that Arrow does not know

    system, root = url_to_fs(where)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), root


def photos(
    arguments: list[str], out: Place, base: Path | None = None, others: Others | None = None
) -> tuple[fs.FileSystem, Iterator[StoredPhoto]]:
    """Find the photos in files, folders, globs or URIs; return their file system and the photos.

    `others` counts the files left out. Raises UsageError for inputs that do not exist, and for
    inputs of several stores.
    """
    others = Others() if others is None else others
    local = [argument for argument in arguments if "://" not in argument]
    remote = [place(argument) for argument in arguments if "://" in argument]
    if not remote:
        return fs.LocalFileSystem(), _local_photos(local, out, base, others)
    systems = [each.system for each in remote]
    if local or any(system != systems[0] for system in systems):
        raise UsageError(f"inputs {', '.join(arguments)}: take them from one store at a time")
    if base is not None:
        raise UsageError("--base is for inputs on a disk; OUT mirrors the URIs' common folder")
    return systems[0], _remote_photos(_there(arguments, remote), out, others)


def _there(arguments: list[str], places: list[Place]) -> list[tuple[Place, fs.FileInfo]]:
    """Look up each place in its store; raises UsageError for one that does not exist."""
    infos = places[0].system.get_file_info([each.root for each in places])
    for argument, info in zip(arguments, infos, strict=True):
        if info.type == fs.FileType.NotFound:
            name = urlsplit(argument)._replace(query="").geturl()  # the query may contain a secret
            is_glob = any(sign in info.path for sign in GLOB_SIGNS)
            why = "globs are for disks, name the folder above" if is_glob else "no such object,"
            more = "" if is_glob else " folder or bucket: check its spelling and the store's region"
            raise UsageError(f"input {name}: {why}{more}")
    return list(zip(places, infos, strict=True))


def _local_photos(
    arguments: list[str], out: Place, base: Path | None, others: Others
) -> Iterator[StoredPhoto]:
    here = Path(out.root) if out.is_local else Path("/dev/null")
    inputs = replace(Inputs.of(arguments, out=here, listing=sys.stdin, base=base), others=others)
    for photo in inputs:
        if photo.fleeting:
            raise UsageError(f"{photo.source}: unpack the tar, or use the batch client")
        yield StoredPhoto(photo.name, photo.source, photo.size, photo.mtime_ns)


def _remote_photos(
    places: list[tuple[Place, fs.FileInfo]], out: Place, others: Others
) -> Iterator[StoredPhoto]:
    roots = [
        str(PurePosixPath(each.root).parent) if info.is_file else each.root for each, info in places
    ]
    base = os.path.commonpath(roots)
    for each, info in places:
        if info.is_file:
            yield StoredPhoto(_below(info.path, base), info.path, info.size, _mtime_ns(info))
            continue
        found = each.files()
        for file in found:
            path = f"{each.root}/{file.path}"
            is_result = each.system == out.system and path.startswith(f"{out.root}/")
            if is_result or _is_hidden(file.path):
                continue
            if is_image(PurePosixPath(path).name):
                yield StoredPhoto(_below(path, base), path, file.size, file.mtime_ns)
            else:
                others.add(file.path)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _below(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/")


def _mtime_ns(info: fs.FileInfo) -> int:
    return UNKNOWN_TIME if info.mtime_ns is None else int(info.mtime_ns)


def _write_local(path: Path, content: bytes) -> None:
    # A unique name: a node that is believed dead may still be writing the same file.
    with replacing(path, durable=False, writer=f".{uuid.uuid4().hex[:8]}") as temporary:
        temporary.write_bytes(content)
