"""Encode large JPEGs in two threads: in strips, which restart markers join.

After a restart marker, a JPEG refers to nothing before it. So each strip can be encoded as a file
of its own. The file is what libjpeg writes with a restart marker after as many rows, and has the
same pixels as one without. Markers: ITU-T T.81, annex B.
"""

from __future__ import annotations

import io
import os
from typing import Any

from PIL import Image

from postprocess.results import threads

BLOCK = 16  # rows and columns that are encoded together, with colours at half the resolution
STRIP = 1 << 20  # pixels of a strip, or a few fewer
MOST_BLOCKS = 65_535  # between two restart markers
FRAME, SCAN, END = 0xC0, 0xDA, b"\xff\xd9"


def encode(image: Image.Image, options: dict[str, Any]) -> bytes:
    """Encode an image; `options` are those of Pillow, which must leave the colours at half."""
    if image.mode != "RGB" or image.width * image.height < threads.LARGE:
        return _saved(image, options)
    blocks = -(-image.width // BLOCK)
    rows = min(max(1, STRIP // (BLOCK * image.width)), MOST_BLOCKS // blocks)
    return _joined(_strips(image, rows, options), image.height)


def _strips(image: Image.Image, rows: int, options: dict[str, Any]) -> list[bytes]:
    """Encode strips of `rows` blocks as files, from the top to the bottom."""
    files: dict[int, bytes] = {}
    options = {**options, "restart_marker_rows": rows}

    def encode_strip(top: int) -> None:
        box = (0, top, image.width, min(top + rows * BLOCK, image.height))
        files[top] = _saved(image.crop(box), options)

    tops = range(0, image.height, rows * BLOCK)
    threads.share(encode_strip, tops, image.width * image.height)
    return [files[top] for top in tops]


def _saved(image: Image.Image, options: dict[str, Any]) -> bytes:
    """Encode an image. Pillow releases Python's lock only where it writes to a real file."""
    if not hasattr(os, "memfd_create"):  # not on Linux
        out = io.BytesIO()
        image.save(out, "JPEG", **options)
        return out.getvalue()
    with os.fdopen(os.memfd_create("jpeg"), "w+b") as file:
        image.save(file, "JPEG", **options)
        file.seek(0)
        return file.read()


def _joined(files: list[bytes], height: int) -> bytes:
    """Join the strips of a picture."""
    parts: list[bytes | memoryview] = [_header(files[0], height)]
    for number, file in enumerate(files):
        parts.append(memoryview(file)[_data_start(file) : -len(END)])
        parts.append(bytes([0xFF, 0xD0 + number % 8]))
    return b"".join([*parts[:-1], END])


def _header(file: bytes, height: int) -> bytes:
    """Return everything before the data of a strip, with the height of the whole picture."""
    header = bytearray(file[: _data_start(file)])
    at = _segment(file, FRAME) + 5  # marker, length, bits
    header[at : at + 2] = height.to_bytes(2, "big")
    return bytes(header)


def _data_start(file: bytes) -> int:
    scan = _segment(file, SCAN)
    return scan + 2 + _length(file, scan)


def _segment(file: bytes, marker: int) -> int:
    """Return where a segment of the header starts."""
    at = 2
    while file[at + 1] != marker:
        at += 2 + _length(file, at)
    return at


def _length(file: bytes, at: int) -> int:
    return int.from_bytes(file[at + 2 : at + 4], "big")
