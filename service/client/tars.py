"""Read tar files that may be broken or hostile: forward only, with bounded memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any

from service.client.files import MOST_BYTES, check_size

# Exceptions of the parsers for damaged files; tarfile turns only some into its own.
ERRORS = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    lzma.LZMAError,
)
MOST_HEADER_BYTES = 1 << 20  # of one member: a name, and what PAX adds


class _Bounded:
    """A file with bounded reads: tarfile reads a header at once, whatever length it claims."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self.most = MOST_HEADER_BYTES
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.most:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self._file.read(size)
        return self.last

    def seek(self, to: int) -> int:
        return self._file.seek(to)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, compressed or not; raises one of ERRORS."""
    with path.open("rb") as raw, _decompressed(raw) as file:
        source: Any = _Bounded(file)  # it has the three methods that a TarFile calls
        with tarfile.TarFile(fileobj=source, errors="surrogateescape") as tar:
            yield tar


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members in order, holding one at a time."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined] # otherwise it keeps every header
        yield member
    # tarfile takes an unreadable header for the end of the archive, unless it is the first.
    if _source(tar).last.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {tar.offset} is broken")


def read(archive: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a member; raises OSError if it is too large or broken."""
    check_size(member.size, f"{archive}!{member.name}")
    source = _source(tar)
    source.most = MOST_BYTES
    try:
        content = tar.extractfile(member)
        return b"" if content is None else content.read()
    except OSError:
        raise
    except ERRORS as error:
        raise OSError(f"{archive}: {error}") from error
    finally:
        source.most = MOST_HEADER_BYTES


def _source(tar: tarfile.TarFile) -> _Bounded:
    source = tar.fileobj
    assert isinstance(source, _Bounded)
    return source


def _decompressed(raw: BufferedReader) -> BufferedIOBase:
    head = raw.read(6)
    raw.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(raw)
    if head.startswith(b"BZh"):
        return bz2.open(raw)
    if head.startswith(b"\xfd7zXZ"):
        return lzma.open(raw)
    return raw
