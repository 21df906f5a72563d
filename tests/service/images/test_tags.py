"""Tests of service/images/tags.py: directories that would take Pillow seconds to read."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from service.errors import InvalidImage
from service.images import tags
from service.images.imaging import decode, open_checked
from tests.service.processor_time import ratio

ORIENTATION, RATIONAL, LONG, UNDEFINED = 274, 5, 4, 7


def directory(*entries: tuple[int, int, int], size: int) -> bytes:
    """A TIFF directory whose tags (tag, type, count) all have their values at its end."""
    at = 8 + 2 + 12 * len(entries) + 4
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    listed = b"".join(struct.pack("<HHII", *entry, at) for entry in entries)
    return head + listed + bytes(4) + b"\1" * size


def png_with(exif: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    data = out.getvalue()
    body = b"eXIf" + exif
    chunk = struct.pack(">I", len(exif)) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


def test_orientation_of_a_million_values_is_ignored_at_once() -> None:
    """The photo is decoded as stored, in about the time of a digest; Pillow would take 3 s."""
    data = png_with(directory((ORIENTATION, RATIONAL, 10**6), size=8 * 10**6))

    def decoded() -> None:
        assert decode(open_checked(data, 100)).orientation == 1

    assert ratio(decoded, lambda: hashlib.sha256(data)) < 10


def test_honest_exif_data_are_applied() -> None:
    """The orientation next to a maker note of 100 KB and some rationals is applied."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[282] = exif[283] = 300.0
    exif[37500] = bytes(100_000)
    out = io.BytesIO()
    Image.new("RGB", (4, 2)).save(out, "PNG", exif=exif)
    photo = decode(open_checked(out.getvalue(), 100))
    assert (photo.orientation, photo.size) == (6, (2, 4))


@pytest.mark.parametrize(
    "entries",
    [
        [(ORIENTATION, RATIONAL, 1001)],
        [(number, RATIONAL, 300) for number in range(300, 304)],
        [(273, LONG, 1_000_001)],
        [(number, UNDEFINED, 8008) for number in range(300, 310)],  # 10 tags share their bytes
        [(number, 3, 1) for number in range(5000)],
    ],
    ids=["rationals", "rationals together", "longs", "overlap", "tags"],
)
def test_directory_that_takes_long_is_refused(entries: list[tuple[int, int, int]]) -> None:
    """Each limit refuses what is just above it."""
    size = max(count * tags.SIZES[kind] for _, kind, count in entries)
    with pytest.raises(InvalidImage, match="too many values"):
        tags.check(directory(*entries, size=size))


def test_tiff_with_a_strip_for_each_of_many_rows_is_read() -> None:
    """A scan of 40,000 rows in as many strips is within the limits."""
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((40_000, 3), np.uint8), rowsperstrip=1)
    assert open_checked(out.getvalue(), 10**6).size == (3, 40_000)


@pytest.mark.parametrize("count", [80, 140])
def test_jpeg_inside_of_a_tiff_has_the_same_limit_of_scans(count: int) -> None:
    """A TIFF whose only strip is a progressive JPEG of more than 100 scans is refused."""
    jpeg = io.BytesIO()
    Image.linear_gradient("L").save(jpeg, "JPEG", progressive=True)
    data = jpeg.getvalue()
    empty = bytes.fromhex("ffda0008010100010100")
    strip = data[:-2] + empty * (count - data.count(b"\xff\xda")) + data[-2:]
    entries = [(256, 3, 256), (257, 3, 256), (258, 3, 8), (259, 3, 7), (262, 3, 1), (277, 3, 1)]
    entries += [(278, 3, 256)]
    at = 8 + 2 + 12 * (len(entries) + 2) + 4
    listed = b"".join(struct.pack("<HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries)
    listed = listed[: 12 * 6] + struct.pack("<HHII", 273, 4, 1, at) + listed[12 * 6 :]
    listed += struct.pack("<HHII", 279, 4, 1, len(strip))
    file = b"II*\0" + struct.pack("<IH", 8, len(entries) + 2) + listed + bytes(4) + strip
    if count > 100:
        with pytest.raises(InvalidImage, match="more than 100 scans"):
            open_checked(file, 10**6)
    else:
        assert open_checked(file, 10**6).size == (256, 256)
