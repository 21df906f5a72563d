"""Remove PNG chunks that make Pillow refuse a photo.

Pillow refuses a file with more than 1 MB of compressed text or colour profile, or more than
64 MB of any text. Text without the orientation is not needed and is removed; the profile is
read here. PNG third edition, section 11.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from postprocess.results.png import SIGNATURE
from service.errors import InvalidImage

TEXT = (b"tEXt", b"zTXt", b"iTXt")
# Text that may contain the orientation; ImageMagick writes the second.
ORIENTED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
PROFILE = b"iCCP"
SMALL = 1000  # bytes that zlib (at most 1:1032) cannot expand beyond Pillow's limit
MANY = 40  # small texts: together they cannot exceed Pillow's limit of 64 MB
PILLOWS_LIMIT = 1024 * 1024
MAX_PLAIN = 8 * 1024 * 1024  # of text with the orientation; image editors keep a history in it
MAX_PROFILE = 8 * 1024 * 1024  # the largest profiles in use, for CMYK printing, have 3 MB
MAX_CHUNKS = 65_536  # libpng writes 8 KB per chunk: half a gigabyte


def readable(data: bytes) -> tuple[bytes, bytes | None]:
    """Return the file without the text that Pillow refuses, and a profile too large for Pillow.

    Other formats are returned unchanged. Raises InvalidImage for too many chunks.
    """
    if not data.startswith(SIGNATURE):
        return data, None
    kept, profile, start, texts = [], None, 0, _Texts()
    for kind, first, end in _chunks(data):
        body = memoryview(data)[first + 8 : end - 4]
        large = _large_profile(body) if kind == PROFILE and len(body) > SMALL else None
        if large is not None or (kind in TEXT and not texts.keeps(kind, body)):
            profile = large or profile
            kept.append(memoryview(data)[start:first])
            start = end
    if not kept:
        return data, None
    return b"".join([*kept, memoryview(data)[start:]]), profile


class _Texts:
    """The texts of one file: the small ones and those with the orientation are kept."""

    def __init__(self) -> None:
        self._small = 0
        self._oriented = set(ORIENTED)

    def keeps(self, kind: bytes, body: memoryview) -> bool:
        """Return whether to keep one more text."""
        if len(body) <= SMALL:
            self._small += 1
            return self._small <= MANY
        key = next((key for key in self._oriented if body[: len(key)] == key), None)
        if key is None:
            return False
        self._oriented.remove(key)
        return _is_readable(kind, body[len(key) :])


def _is_readable(kind: bytes, text: memoryview) -> bool:
    """Return whether Pillow reads what follows a text's keyword."""
    if kind == b"tEXt" or (kind == b"iTXt" and text[0] == 0):
        return len(text) <= MAX_PLAIN
    # One byte of method or, in iTXt, flag, method and two texts that end with 0.
    packed = bytes(text[1:]) if kind == b"zTXt" else bytes(text[2:]).split(b"\0", 2)[-1]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, PILLOWS_LIMIT)
    except zlib.error:
        return True  # Pillow ignores it
    return not unpacking.unconsumed_tail


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of every complete chunk."""
    first, count = len(SIGNATURE), 0
    while first + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, first)
        end = first + 12 + length
        count += 1
        if count > MAX_CHUNKS:
            raise InvalidImage(f"the PNG has more than {MAX_CHUNKS} chunks: encode it again")
        if end > len(data) or kind == b"IEND":
            return
        yield kind, first, end
        first = end


def _large_profile(body: memoryview) -> bytes | None:
    """Return a chunk's profile if it is too large for Pillow; empty if it exceeds MAX_PROFILE."""
    unpacking = zlib.decompressobj()
    try:
        packed = bytes(body)
        profile = unpacking.decompress(packed[packed.index(b"\0") + 2 :], MAX_PROFILE)
    except (ValueError, zlib.error):
        return None  # Pillow ignores broken profiles
    if len(profile) <= PILLOWS_LIMIT:
        return None
    return b"" if unpacking.unconsumed_tail else profile
