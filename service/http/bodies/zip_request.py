"""Read photos from a ZIP, with limits on members, bytes and the directory.

Only the bytes that the directory declares are unpacked. The size of the directory is checked before
it is parsed, because Python creates an object for each entry. APPNOTE.TXT of PKWARE, section 4.3.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from service.errors import BodyTooLarge, InvalidRequest

MEDIA_TYPES = ("application/zip", "application/x-zip-compressed")
END = struct.Struct("<4s4H2LH")  # the end of the central directory, and
END_SIGNATURE, LONGEST_COMMENT = b"PK\x05\x06", 65_535
ZIP64_SIGNATURE, ZIP64_LOCATOR = b"PK\x06\x07", 20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
# Exceptions of zipfile for broken archives.
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError, struct.error)
OF_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Limits:
    """The most that an archive may contain."""

    members: int
    bytes: int  # of all members, unpacked
    directory: int = 1 << 20  # bytes; some 10,000 entries of ordinary names

    def check_bytes(self, size: int) -> None:
        """Raise BodyTooLarge for more bytes than the limit."""
        if size > self.bytes:
            raise BodyTooLarge(
                f"the ZIP unpacks to {size} bytes, the limit is {self.bytes}: send fewer photos"
            )


def photos(file: IO[bytes], limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each photo; raises InvalidRequest or BodyTooLarge.

    Folders, hidden files and files that operating systems add are left out.
    """
    _check_directory(file, limits)
    try:
        with zipfile.ZipFile(file) as archive:
            found = members(archive)
            _check(found, limits)
            for each in found:
                yield each.filename, content(archive, each)
    except BROKEN as error:
        raise InvalidRequest(f"the ZIP is broken: {error}") from None


def names(file: IO[bytes], limits: Limits) -> list[str]:
    """Return the names of the photos, without unpacking them; raises as `photos` does."""
    _check_directory(file, limits)
    try:
        with zipfile.ZipFile(file) as archive:
            found = members(archive)
    except BROKEN as error:
        raise InvalidRequest(f"the ZIP is broken: {error}") from None
    _check(found, limits)
    return [each.filename for each in found]


def members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of an archive, without those that systems add."""
    return [each for each in archive.infolist() if not _is_left_out(each)]


def _check(members: list[zipfile.ZipInfo], limits: Limits) -> None:
    if not members:
        raise InvalidRequest("the ZIP has no files: put photos into it")
    if len(members) > limits.members:
        raise InvalidRequest(
            f"the ZIP has {len(members)} files, the limit is {limits.members}: send fewer"
        )
    for each in members:
        if each.flag_bits & ENCRYPTED:
            raise InvalidRequest(f"{each.filename!r} is encrypted: send the ZIP without a password")
        if each.compress_type not in METHODS:
            raise InvalidRequest(f"{each.filename!r}: compress by deflate, or only store the files")
    limits.check_bytes(sum(each.file_size for each in members))


def content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member; raises InvalidRequest."""
    try:
        with archive.open(member) as file:
            data = file.read(member.file_size)  # never more, whatever it unpacks to
            file.read(1)  # at the end zipfile compares the checksum
    except BROKEN as error:
        raise InvalidRequest(f"the ZIP is broken: {error}") from None
    if len(data) < member.file_size:
        raise InvalidRequest(f"the ZIP is broken: {member.filename!r} is cut off")
    return data


def _is_left_out(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    return member.is_dir() or path.name.startswith(".") or not {*path.parts}.isdisjoint(OF_SYSTEMS)


def _check_directory(file: IO[bytes], limits: Limits) -> None:
    """Raise InvalidRequest unless the archive ends with a directory of limited size."""
    size = file.seek(0, 2)
    start = max(0, size - END.size - LONGEST_COMMENT)
    file.seek(start)
    tail = file.read(size - start)
    at = tail.rfind(END_SIGNATURE)
    if at < 0 or len(tail) - at < END.size:
        raise InvalidRequest("the body is not a ZIP, or it is cut off")
    directory = END.unpack_from(tail, at)[5]
    if tail[max(0, at - ZIP64_LOCATOR) : at].startswith(ZIP64_SIGNATURE):
        raise InvalidRequest(
            "the ZIP is in the form for large archives (ZIP64): send an ordinary one"
        )
    if directory > limits.directory:
        raise InvalidRequest(
            f"the ZIP's directory has {directory} bytes, the limit is {limits.directory}: send at "
            f"most {limits.members} files"
        )
    file.seek(0)
