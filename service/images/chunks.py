"""Remove PNG chunks that make Pillow refuse a photo.

Pillow refuses a file with more than 1 MB of compressed text or colour profile. The text is
not needed and is removed; the profile is read here. PNG third edition, section 11.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from service.errors import InvalidImage
from service.images.png import SIGNATURE

COMPRESSED_TEXT = (b"zTXt", b"iTXt")
XMP = b"XML:com.adobe.xmp\0\0"  # an uncompressed iTXt that may contain the orientation
PROFILE = b"iCCP"
SMALL = 1000  # bytes that zlib (at most 1:1032) cannot expand beyond Pillow's limit
PILLOWS_LIMIT = 1024 * 1024
MAX_PROFILE = 8 * 1024 * 1024  # the largest profiles in use, for CMYK printing, have 3 MB
MAX_CHUNKS = 65_536  # libpng writes 8 KB per chunk: half a gigabyte


def readable(data: bytes) -> tuple[bytes, bytes | None]:
    """Return the file without the text that Pillow refuses, and a profile too large for Pillow.

    Other formats are returned unchanged. Raises InvalidImage for too many chunks.
    """
    if not data.startswith(SIGNATURE):
        return data, None
    kept, profile, start = [], None, 0
    for kind, first, end in _chunks(data):
        body = data[first + 8 : end - 4] if end - first > SMALL else b""
        large = _large_profile(body) if kind == PROFILE and body else None
        if large is not None or (kind in COMPRESSED_TEXT and body and not body.startswith(XMP)):
            profile = large or profile
            kept.append(memoryview(data)[start:first])
            start = end
    if not kept:
        return data, None
    return b"".join([*kept, memoryview(data)[start:]]), profile


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


def _large_profile(body: bytes) -> bytes | None:
    """Return a chunk's profile if it is too large for Pillow; empty if it exceeds MAX_PROFILE."""
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(body[body.index(b"\0") + 2 :], MAX_PROFILE)
    except (ValueError, zlib.error):
        return None  # Pillow ignores broken profiles
    if len(profile) <= PILLOWS_LIMIT:
        return None
    return b"" if unpacking.unconsumed_tail else profile
