"""Read the directory of a TIFF file, and append another one that describes the same data.

Pillow and libtiff read only some kinds of samples. A file with others gets a new directory that
describes them as a kind that they do read.
TIFF revision 6.0, sections 2 and 8.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
OFFSETS, ORIENTATION, SAMPLES, COUNTS, PLANAR = 273, 274, 277, 279, 284
ROWS = 278  # of a strip
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 317, 322, 323, 324, 325
EXTRA, FORMAT = 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
UNSIGNED, UNDEFINED = 1, 4  # tag 339; undefined is read as unsigned
IN_PLANES = 2  # tag 284
ALPHA = 2  # tag 338: alpha, not premultiplied
ALPHAS = {1, ALPHA}
CLASSIC = 42  # in the header; 43: BigTIFF
SHORT, LONG = 3, 4  # types of a tag's values
SHORTS = {BITS, COMPRESSION, PHOTOMETRIC, 266, ORIENTATION, SAMPLES, PLANAR, PREDICTOR, EXTRA}
SHORTS |= {FORMAT}
# Size, compression, fill order, orientation, rows a strip, predictor, tile size.
COPIED = (WIDTH, HEIGHT, COMPRESSION, 266, ORIENTATION, ROWS, PREDICTOR, TILE_WIDTH, TILE_HEIGHT)
PLACES = (OFFSETS, COUNTS, TILE_OFFSETS, TILE_COUNTS)  # of strips or tiles

Tags = Mapping[int, Any]


class TiffError(ValueError):
    """A TIFF file has tags that cannot be written again, or samples that cannot be read."""


SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_tiff(data: bytes) -> bool:
    """Return whether the bytes start like a TIFF."""
    return data.startswith(SIGNATURES)


def directory(data: bytes) -> Tags:
    """Parse the first directory; broken ones raise many kinds of errors."""
    big = b"+" in data[2:4]
    found = ImageFileDirectory_v2(data[: 16 if big else 8])
    file = io.BytesIO(data)
    file.seek(found.next)
    found.load(file)
    return dict(found)


def values(tags: Tags, number: int, *default: int) -> tuple[Any, ...]:
    """The values of a tag; the default if it is missing."""
    value = tags.get(number, default)
    return value if isinstance(value, tuple) else (value,)


def first(tags: Tags, number: int, default: int) -> int:
    """The first value of a tag; the default if it is missing or of a wrong type."""
    try:
        return int(values(tags, number)[0])
    except (ValueError, TypeError, IndexError):
        return default


def plane(data: bytes, tags: Tags, number: int) -> bytes:
    """Return the file with a new directory that shows one plane as grey."""
    samples = first(tags, SAMPLES, 1)
    own: dict[int, Any] = {tag: tags[tag] for tag in COPIED if tag in tags}
    own |= {BITS: first(tags, BITS, 1), SAMPLES: 1, PLANAR: 1, FORMAT: UNSIGNED}
    own[PHOTOMETRIC] = BLACK_IS_ZERO
    for tag in PLACES:
        if tag in tags:
            each = values(tags, tag)
            share = len(each) // samples
            own[tag] = each[number * share : (number + 1) * share]
    return with_directory(data, own)


def outline(data: bytes, tags: Tags) -> bytes:
    """Return the file with a new directory that only tells size and orientation, as grey."""
    own = {tag: tags[tag] for tag in (WIDTH, HEIGHT, ORIENTATION) if tag in tags}
    own |= {BITS: 8, SAMPLES: 1, PHOTOMETRIC: BLACK_IS_ZERO, COMPRESSION: 1, PLANAR: 1}
    return with_directory(data, {**own, ROWS: tags.get(HEIGHT, 1), OFFSETS: 8, COUNTS: 1})


def with_directory(data: bytes, tags: Tags) -> bytes:
    """Return the file with a new first directory after its data; raises TiffError."""
    # Packed bits have no byte order, but Pillow reads 12-bit samples only as little-endian.
    order = "<" if data.startswith(b"II") or tags[BITS] == 12 else ">"
    data += bytes(len(data) % 2)  # directories start at an even offset
    entries, beyond = [], b""
    at = len(data) + 2 + 12 * len(tags) + 4  # the offset of values with more than 4 bytes
    for tag in sorted(tags):
        own = values(tags, tag)
        kind, code = (SHORT, "H") if tag in SHORTS else (LONG, "L")
        try:
            packed = struct.pack(f"{order}{len(own)}{code}", *own)
        except struct.error:
            raise TiffError(f"tag {tag} of the TIFF is broken: {own[:3]}") from None
        if len(packed) > 4:
            packed, beyond = struct.pack(f"{order}L", at + len(beyond)), beyond + packed
        entries.append(struct.pack(f"{order}HHL4s", tag, kind, len(own), packed))
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", CLASSIC, len(data))
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)
    return b"".join([header, memoryview(data)[8:], directory, beyond])
