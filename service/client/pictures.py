"""Read the size of encoded images and check that files are complete, without a decoder.

The client needs no imaging library. It checks the container of a result only: the CRC-32 of
every PNG chunk, and the markers at both ends of a JPEG.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from service.client.errors import BadAnswerError

Size = tuple[int, int]  # (W, H) in pixels, as stored: before any EXIF rotation

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
AVIF = (b"ftypavif", b"ftypavis")  # after the length of the first box
LONGEST_AVIF_HEADER = 4096  # bytes: the box with the size is near the beginning
JPEG_END = b"\xff\xd9"
# SOF0 to SOF15 carry the size; C4, C8 and CC in that range are other segments (T.81, Table B.1).
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
TIFF_SIZES = {256: 0, 257: 1}  # tag -> index in (W, H)
TIFF_NUMBERS = {3: "H", 4: "I"}  # field type -> its struct code: SHORT, LONG


def size_of(image: bytes) -> Size | None:
    """Read (W, H) from the header of a picture; None if there is none."""
    if image[4:12] in AVIF:
        return _avif_size(image)
    for signature, read in READERS.items():
        if image.startswith(signature):
            try:
                size = read(image)
            except (struct.error, IndexError):  # the header is cut
                return None
            return size if size is not None and min(size) > 0 else None
    return None


def check_whole(image: bytes, kind: str) -> None:
    """Raise BadAnswerError unless this is a complete file of the media type `kind`."""
    if kind == "image/png":
        _check_png(image)
    elif kind == "image/jpeg" and not (image.startswith(JPEG) and image.endswith(JPEG_END)):
        raise BadAnswerError("it is not a complete JPEG")
    elif kind == "image/webp" and not _is_whole_webp(image):
        raise BadAnswerError("it is not a complete WebP")
    elif kind == "image/avif" and not _is_whole_avif(image):
        raise BadAnswerError("it is not a complete AVIF")


def _is_whole_webp(image: bytes) -> bool:
    """Return whether the length of a WebP is the one in its header."""
    if image[:4] != b"RIFF" or image[8:12] != b"WEBP":
        return False
    return len(image) == 8 + int.from_bytes(image[4:8], "little")


def _is_whole_avif(image: bytes) -> bool:
    """Return whether the boxes of an AVIF fill it exactly."""
    if image[4:12] not in AVIF:
        return False
    at = 0
    while at + 8 <= len(image):
        length = int.from_bytes(image[at : at + 4], "big")
        if length < 8:  # 0 and 1 stand for long boxes, which our pictures do not need
            return False
        at += length
    return at == len(image)


def _check_png(image: bytes) -> None:
    if not image.startswith(PNG):
        raise BadAnswerError("it is not a PNG")
    at, kind = len(PNG), b""
    view = memoryview(image)
    while kind != b"IEND":
        if len(image) < at + 12:
            raise BadAnswerError("the PNG is cut")
        length, kind = struct.unpack_from(">I4s", image, at)
        end = at + 8 + length
        if len(image) < end + 4:
            raise BadAnswerError("the PNG is cut")
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", image, end)[0]:
            raise BadAnswerError("the PNG is damaged: a chunk does not match its CRC")
        at = end + 4
    if at != len(image):
        raise BadAnswerError("bytes follow the end of the PNG")


def _png_size(image: bytes) -> Size | None:
    width, height = struct.unpack_from(">II", image, 16)
    return (width, height) if image[12:16] == b"IHDR" else None


def _jpeg_size(image: bytes) -> Size | None:
    at = 2
    while image[at] == 0xFF:
        marker = image[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in JPEG_ALONE:
            at += 2
        elif marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", image, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", image, at + 2)[0]
    return None


def _webp_size(image: bytes) -> Size | None:
    if image[8:12] != b"WEBP":
        return None
    kind = image[12:16]
    if kind == b"VP8X":
        canvas = [int.from_bytes(image[at : at + 3], "little") + 1 for at in (24, 27)]
        return canvas[0], canvas[1]
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", image, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", image, 26)  # the upper two bits are a scale
    return (width & 0x3FFF, height & 0x3FFF) if kind == b"VP8 " else None


def _bmp_size(image: bytes) -> Size | None:
    if struct.unpack_from("<I", image, 14)[0] == 12:  # OS/2's first header
        width, height = struct.unpack_from("<HH", image, 18)
    else:
        width, height = struct.unpack_from("<ii", image, 18)
    return abs(width), abs(height)  # a negative height: rows from top to bottom


def _tiff_size(image: bytes) -> Size | None:
    order = "<" if image[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", image, 4)
    (count,) = struct.unpack_from(f"{order}H", image, directory)
    size = [0, 0]
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", image, at)
        if tag in TIFF_SIZES and kind in TIFF_NUMBERS:
            code = f"{order}{TIFF_NUMBERS[kind]}"
            size[TIFF_SIZES[tag]] = struct.unpack_from(code, image, at + 8)[0]
    return size[0], size[1]


def _avif_size(image: bytes) -> Size | None:
    """Read the first box `ispe`, which is that of the picture."""
    at = image.find(b"ispe", 0, LONGEST_AVIF_HEADER)
    if at < 0 or len(image) < at + 16:
        return None
    width, height = struct.unpack_from(">II", image, at + 8)
    return (width, height) if width and height else None


READERS: dict[bytes, Callable[[bytes], Size | None]] = {
    JPEG: _jpeg_size,
    PNG: _png_size,
    b"RIFF": _webp_size,
    b"BM": _bmp_size,
    b"II*\x00": _tiff_size,
    b"MM\x00*": _tiff_size,
}
