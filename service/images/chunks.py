"""The chunks of a PNG file, as far as Pillow gives a photo up for what stands beside it.

Pillow refuses a file with more than 1 MB of compressed text or colour profile. Nobody sees
the text, so it is left out; the profile is read here. PNG third edition, section 11.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from service.errors import InvalidImage
from service.images.png import SIGNATURE

COMPRESSED_TEXT = (b"zTXt", b"iTXt")
XMP = b"XML:com.adobe.xmp\0\0"  # an uncompressed iTXt, which may hold the orientation
PROFILE = b"iCCP"
SMALL = 1000  # bytes that zlib, at best 1:1032, cannot blow up beyond what Pillow takes
PILLOWS_LIMIT = 1024 * 1024
MAX_PROFILE = 8 * 1024 * 1024  # the largest in use, for printing in CMYK, have 3 MB
MAX_CHUNKS = 65_536  # libpng writes 8 KB in each: half a gigabyte


def readable(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG file that Pillow does not give up for its text, and a profile too large for Pillow.

    What is no PNG comes back as it is. Raises InvalidImage for chunks without end.
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
    """Kind, begin and end of every whole chunk."""
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
    """The profile in a chunk if it is larger than Pillow takes; empty if it is no use at all."""
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(body[body.index(b"\0") + 2 :], MAX_PROFILE)
    except (ValueError, zlib.error):
        return None  # Pillow finds that it is broken, and does without
    if len(profile) <= PILLOWS_LIMIT:
        return None
    return b"" if unpacking.unconsumed_tail else profile
