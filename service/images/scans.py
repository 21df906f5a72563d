"""Limit the parts that make a JPEG slow to decode: scans, segments and EXIF data.

Every scan of a progressive JPEG makes the decoder visit all blocks of the photo, even if the
scan itself has only a few bytes. Pillow reads segments and EXIF values one by one in Python.
Markers: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re

from service.errors import InvalidImage

SOI = b"\xff\xd8"
MAX_SCANS = 100  # libjpeg's default for colour photos is 10
MAX_SEGMENTS = 10_000  # a profile or XMP data of the largest size has 255 of them
MAX_EXIF = 512 * 1024  # bytes; the standard allows 64 KB, some programs write several segments
EOI, START_OF_SCAN, APP1, APP2 = 0xD9, 0xDA, 0xE1, 0xE2
FRAMES = {0xC0, 0xC2}  # baseline and progressive, both of 8 bits
# Of a plain JPEG. Cameras write fewer than ten segments, and a thumbnail in them has 64 KB at most.
PLAIN_SEGMENTS, PLAIN_HEADER = 32, 128 * 1024
WITHOUT_LENGTH = (0x01, 0xD8)  # TEM and SOI
# Not 0 (a stuffed byte of a scan), nor D0 to D7 (restarts inside a scan), nor FF (padding).
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def count(data: bytes) -> int:
    """Return the scans of a JPEG, 1 for other formats; raises InvalidImage above a limit."""
    return max(1, _scans(data)) if data.startswith(SOI) else 1


def _scans(data: bytes) -> int:
    """Count the scans up to the end marker."""
    scans, segments, exif, position = 0, 0, 0, len(SOI)
    while found := MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == EOI:
            break
        scans += marker == START_OF_SCAN
        segments += 1
        if marker not in WITHOUT_LENGTH:  # skip the segment: thumbnails in it have scans too
            length = int.from_bytes(data[position : position + 2], "big")
            if marker == APP1 and data[position + 2 : position + 6] == b"Exif":
                exif += length
            position += length
        _check(scans, segments, exif)
    return scans


def _check(scans: int, segments: int, exif: int) -> None:
    if scans > MAX_SCANS:
        raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans: encode it again")
    if segments > MAX_SEGMENTS:
        raise InvalidImage(f"the JPEG has more than {MAX_SEGMENTS} segments: encode it again")
    if exif > MAX_EXIF:
        raise InvalidImage(f"the JPEG has more than {MAX_EXIF} bytes of EXIF data: remove them")


def plain_pixels(data: bytes) -> int:
    """Return the pixels of a JPEG whose header is short and has no profile; 0 for other files.

    Only the segments in front of the first scan are visited.
    """
    if not data.startswith(SOI):
        return 0
    pixels, position = 0, len(SOI)
    for _ in range(PLAIN_SEGMENTS):
        found = MARKER.match(data, position)
        if found is None or position > PLAIN_HEADER:
            return 0
        marker, position = found[1][0], found.end()
        if marker == START_OF_SCAN:
            return pixels
        if marker in (EOI, APP2, *WITHOUT_LENGTH):  # APP2: colour profiles, several pictures
            return 0
        if marker in FRAMES:
            height, width = (int.from_bytes(data[position + i : position + i + 2]) for i in (3, 5))
            pixels = max(pixels, height * width)
        position += int.from_bytes(data[position : position + 2])
    return 0
