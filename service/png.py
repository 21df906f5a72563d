"""PNG files of images whose rows repeat, as masks do that were brought to a large photo's size.

A mask of 12 megapixels from a model of 513 x 513 has some hundred different rows,
each several times. PNG stores a row as its difference to the one above (filter
"Up"): a repeated row is all zeros, whatever it shows. Its compressed form is made
once and written as often as needed, so time goes with the rows that differ.

PNG: W3C Recommendation, third edition; deflate: RFC 1951; its container: RFC 1950.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, INDEXED = 0, 2, 3  # colour types
AS_IS, UP = b"\x00", b"\x02"  # filter types, the byte in front of each row
DEFLATE_FAST = b"\x78\x01"  # header of a zlib stream
LEVEL = 1
TOGETHER = (64, 16, 4, 1)  # repeats that share a compressed block: fewer, smaller files
ADLER = 65521

Pixels = NDArray[np.uint8]


def runs(image: Pixels) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(H, W) -> where a row differs from the one above, and how many equal rows follow there."""
    differs = np.ones(len(image), np.bool_)
    differs[1:] = (image[1:] != image[:-1]).any(axis=1)
    starts = np.flatnonzero(differs)
    return starts, np.diff(starts, append=len(image))


def encode(rows: Pixels, counts: NDArray[np.intp], palette: Pixels | None = None) -> bytes:
    """Rows (R, W) or (R, W, 3), each as many times as `counts` (R,) says, as a PNG.

    With a palette (256, 3) the values are its indices; else grey, or RGB.
    """
    kind = RGB if rows.ndim == 3 else GREY if palette is None else INDEXED
    header = struct.pack(">IIBBBBB", rows.shape[1], int(counts.sum()), 8, kind, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", palette.tobytes()))
    data = b"".join(_compressed(rows.reshape(len(rows), -1), counts))
    return b"".join([SIGNATURE, *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _compressed(rows: Pixels, counts: NDArray[np.intp]) -> Iterator[bytes]:
    """The zlib stream of all rows with their filter types."""
    stream, width = _deflater(), rows.shape[1]
    blocks = {n: _flushed(_deflater(), (UP + bytes(width)) * n) for n in TOGETHER}
    adler = 1
    yield DEFLATE_FAST
    for row, count in zip(rows, counts.tolist(), strict=True):
        line = AS_IS + row.tobytes()
        adler = zlib.adler32(line, adler)
        if count == 1:
            yield stream.compress(line)
            continue
        # A full flush ends at a byte, and what follows refers to nothing before it.
        yield _flushed(stream, line)
        yield _repeats(blocks, count - 1)
        adler = _adler_of_repeats(adler, width, count - 1)
    yield stream.flush() + struct.pack(">I", adler)


def _deflater() -> zlib._Compress:
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_RLE)


def _flushed(stream: zlib._Compress, line: bytes) -> bytes:
    return stream.compress(line) + stream.flush(zlib.Z_FULL_FLUSH)


def _repeats(blocks: dict[int, bytes], count: int) -> bytes:
    """`count` repeats of a row, from blocks of many (the largest first) or one."""
    parts = []
    for size, block in blocks.items():
        times, count = divmod(count, size)
        parts.append(block * times)
    return b"".join(parts)


def _adler_of_repeats(adler: int, width: int, count: int) -> int:
    """The checksum after `count` more lines of the byte 2 and `width` zeros (RFC 1950, 8.2)."""
    low, high = adler & 0xFFFF, adler >> 16
    # Line i adds 2 to the low sum, then width + 1 times that sum to the high one.
    high += (width + 1) * (count * low + count * (count + 1))
    return (high % ADLER) << 16 | (low + 2 * count) % ADLER
