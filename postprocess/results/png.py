"""Encode PNG files quickly: images with repeated rows, such as enlarged masks, and pictures.

A mask of 12 megapixels from a model of 513 x 513 has a few hundred different rows, each
repeated several times. PNG can store a row as the difference to the row above (filter
"Up"), so a repeated row is all zeros. Its compressed form is made once and written as
often as needed: the time depends on the number of different rows only.

PNG: W3C Recommendation, third edition; deflate: RFC 1951; its container: RFC 1950.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, INDEXED, RGBA = 0, 2, 3, 6  # colour types
NONE, UP = 0, 2  # filter types: the byte in front of each row
DEFLATE_FAST = b"\x78\x01"  # header of a zlib stream
LEVEL = 1  # of zlib: the fastest one already compresses masks to a few kilobytes
MEM_LEVEL = 6  # size of zlib's hash table, which every full flush clears
BLOCKS = (64, 16, 4, 1)  # repeats in one precompressed block: large ones make smaller files
AT_ONCE = 256  # rows per call of zlib: few calls, little memory
ADLER = 65521

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Rows:
    """An image (H, W) or (H, W, 3), run-length encoded by rows."""

    different: Pixels  # (R, W) or (R, W, 3)
    counts: NDArray[np.intp]  # (R,), at least 1

    @classmethod
    def of(cls, image: Pixels, counts: NDArray[np.intp] | None = None) -> Rows:
        """Encode an image (H, W), or rows (H, W) that each repeat `counts` (H,) times."""
        differs = np.ones(len(image), np.bool_)
        differs[1:] = (image[1:] != image[:-1]).any(axis=1)
        starts = np.flatnonzero(differs)
        if counts is None:
            return cls(image[starts], np.diff(starts, append=len(image)))
        return cls(image[starts], np.add.reduceat(counts, starts))

    @cached_property
    def image(self) -> Pixels:
        """The decoded image."""
        return self.different.repeat(self.counts, axis=0)

    @property
    def height(self) -> int:
        """The number of rows."""
        return int(self.counts.sum())

    @cached_property
    def _used(self) -> NDArray[np.intp]:
        """For each row the index of the different one that it repeats."""
        return np.arange(len(self.counts)).repeat(self.counts)

    def between(self, top: int, bottom: int) -> Pixels:
        """Return the rows from `top` up to `bottom`, or to the end."""
        rows, repeated = self.stretch(top, bottom)
        return rows[repeated]

    def stretch(self, top: int, bottom: int) -> tuple[Pixels, NDArray[np.intp]]:
        """Return the different rows in a stretch, and for each of its rows which one it is."""
        used = self._used[top:bottom]
        return self.different[used[0] : used[-1] + 1], used - used[0]


def nearest(have: int, want: int) -> NDArray[np.intp]:
    """For each of `want` pixels return the index of the nearest of `have`, by their centres."""
    return _nearest_of(np.arange(want), have, want)


def shares(have: int, want: int) -> NDArray[np.intp]:
    """For each of `have` pixels return the number of `want` pixels that `nearest` gives it.

    The time and memory depend on `have` alone: a picture may be tens of millions of pixels wide.
    """
    order = np.arange(1, have)
    starts = np.ceil(order * (want / have) - 0.5).astype(np.intp)  # correct but for rounding
    starts -= _nearest_of(starts - 1, have, want) >= order
    starts += _nearest_of(starts, have, want) < order
    counts: NDArray[np.intp] = np.diff(starts, prepend=0, append=want)
    return counts


def _nearest_of(pixels: NDArray[np.intp], have: int, want: int) -> NDArray[np.intp]:
    return ((pixels + 0.5) * (have / want)).astype(np.intp)


def encode(image: Rows, palette: Pixels | None = None) -> bytes:
    """Encode as a PNG: grey, RGB or, with a palette (256, 3), indexed."""
    rows, counts = image.different, image.counts
    kind = RGB if rows.ndim == 3 else GREY if palette is None else INDEXED
    header = struct.pack(">IIBBBBB", rows.shape[1], int(counts.sum()), 8, kind, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", palette.tobytes()))
    data = b"".join(_compressed(rows.reshape(len(rows), -1), counts))
    return b"".join([SIGNATURE, *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b"")])


def encode_picture(pixels: Pixels) -> bytes:
    """Encode a picture whose rows all differ: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.

    Every row is stored as the difference to the row above: libpng tries five filters on
    each row, which takes twice the time and makes the file no smaller.
    """
    height, width = pixels.shape[:2]
    kind = GREY if pixels.ndim == 2 else {3: RGB, 4: RGBA}[pixels.shape[2]]
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    data = b"".join(_differences(pixels.reshape(height, -1)))
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"".join([SIGNATURE, *parts])


def _differences(rows: Pixels) -> Iterator[bytes]:
    """Yield the zlib stream of rows with filter "Up", some rows at a time."""
    stream = zlib.compressobj(LEVEL)
    above = np.zeros((1, rows.shape[1]), np.uint8)
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        lines = np.empty((len(some), some.shape[1] + 1), np.uint8)
        lines[:, 0] = UP
        np.subtract(some[:1], above, out=lines[:1, 1:])
        np.subtract(some[1:], some[:-1], out=lines[1:, 1:])
        above = some[-1:]
        yield stream.compress(lines.data)
    yield stream.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _compressed(rows: Pixels, counts: NDArray[np.intp]) -> Iterator[bytes]:
    """Yield the zlib stream of all rows with their filter types."""
    stream, width = _deflater(), rows.shape[1]
    # No block has more rows than are repeated: a wide image of one row needs none.
    sizes = [n for n in BLOCKS if n < counts.max()]
    blocks = {n: _flushed(_deflater(), (bytes([UP]) + bytes(width)) * n) for n in sizes}
    adler = 1
    yield DEFLATE_FAST
    for lines, again in _pieces(rows, counts):
        adler = zlib.adler32(lines, adler)
        if not again:
            yield stream.compress(lines)
            continue
        # A full flush ends at a byte boundary, and later data does not refer to earlier data.
        yield _flushed(stream, lines)
        yield _repeats(blocks, again)
        adler = _adler_of_repeats(adler, width, again)
    yield stream.flush() + struct.pack(">I", adler)


def _pieces(rows: Pixels, counts: NDArray[np.intp]) -> Iterator[tuple[memoryview, int]]:
    """Yield rows with their filter types, and how often to repeat the last of them."""
    for first in range(0, len(rows), AT_ONCE):
        some, again = rows[first : first + AT_ONCE], counts[first : first + AT_ONCE] - 1
        lines = np.empty((len(some), some.shape[1] + 1), np.uint8)
        lines[:, 0] = NONE
        lines[:, 1:] = some
        start = 0
        for end in sorted({*(np.flatnonzero(again) + 1).tolist(), len(lines)}):
            yield lines[start:end].data, int(again[end - 1])
            start = end


def _deflater() -> zlib._Compress:
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, MEM_LEVEL, zlib.Z_RLE)


def _flushed(stream: zlib._Compress, lines: bytes | memoryview) -> bytes:
    return stream.compress(lines) + stream.flush(zlib.Z_FULL_FLUSH)


def _repeats(blocks: dict[int, bytes], count: int) -> bytes:
    """Return `count` repeats of a row, made of the blocks, largest first."""
    parts = []
    for size, block in blocks.items():
        times, count = divmod(count, size)
        parts.append(block * times)
    return b"".join(parts)


def _adler_of_repeats(adler: int, width: int, count: int) -> int:
    """Return the checksum after `count` more rows: the byte 2 and `width` zeros (RFC 1950, 8.2)."""
    low, high = adler & 0xFFFF, adler >> 16
    # Line i adds 2 to the low sum, then width + 1 times that sum to the high one.
    high += (width + 1) * (count * low + count * (count + 1))
    return (high % ADLER) << 16 | (low + 2 * count) % ADLER
