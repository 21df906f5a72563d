"""Read how many values the tags of a TIFF directory have, before Pillow reads the values.

EXIF data are such a directory. Pillow converts values one by one in Python, so a tag with
millions of them takes seconds. TIFF revision 6.0, section 2; BigTIFF, libtiff's description.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from service.errors import InvalidImage

BIG = 43  # the version in a BigTIFF's header; 42 in others
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}  # of BigTIFF
AS_A_WHOLE = (1, 2, 6, 7)  # types that Pillow reads without a loop: bytes, text, undefined
RATIONALS = (5, 10)
MAX_RATIONALS = 1000  # a photo has about 30
MAX_VALUES = 1_000_000  # mostly offsets of strips; a photo may have a strip for each row
MAX_TAGS = 4096  # a photo has fewer than 100


def check(data: bytes) -> None:
    """Raise InvalidImage for a first directory that would take long to read.

    Tags may overlap, so that a small file could have as much data as tags times its size.
    """
    found = list(counts(data))
    loops = [(kind, count) for _, kind, count in found if kind not in AS_A_WHOLE]
    rationals = sum(count for kind, count in loops if kind in RATIONALS)
    size = sum(count * SIZES.get(kind, 0) for _, kind, count in found if count < len(data))
    if (
        len(found) > MAX_TAGS
        or rationals > MAX_RATIONALS
        or sum(count for _, count in loops) > MAX_VALUES
        or size > 2 * len(data)
    ):
        raise InvalidImage("the TIFF directory of the image has too many values: write it again")


def counts(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield number, type and count of values of each tag; stop if the data are truncated."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (version,) = struct.unpack_from(order + "H", data, 2)
        big = version == BIG
        (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        entry, size = struct.Struct(order + ("HHQ" if big else "HHL")), 20 if big else 12
        first = start + (8 if big else 2)
        for number in range(min(tags, MAX_TAGS + 1)):
            yield entry.unpack_from(data, first + number * size)
    except (struct.error, OverflowError):
        return
