"""Limit the scans of a JPEG before it is decoded.

Every scan of a progressive JPEG makes the decoder visit all blocks of the photo, even if the
scan itself has only a few bytes. Markers: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re

from service.errors import InvalidImage

SOI = b"\xff\xd8"
MAX_SCANS = 100  # libjpeg's default for colour photos is 10
EOI, START_OF_SCAN = 0xD9, 0xDA
WITHOUT_LENGTH = (0x01, 0xD8)  # TEM and SOI
# Not 0 (a stuffed byte of a scan), nor D0 to D7 (restarts inside a scan), nor FF (padding).
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def check(data: bytes) -> None:
    """Raise InvalidImage for a JPEG of more than MAX_SCANS scans; accept other formats."""
    if data.startswith(SOI) and _scans(data) > MAX_SCANS:
        raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans: encode it again")


def _scans(data: bytes) -> int:
    """Count the scans up to the end marker, at most MAX_SCANS + 1."""
    count, position = 0, len(SOI)
    while count <= MAX_SCANS and (found := MARKER.search(data, position)):
        marker, position = found[1][0], found.end()
        if marker == EOI:
            break
        count += marker == START_OF_SCAN
        if marker not in WITHOUT_LENGTH:  # skip the segment: thumbnails in it have scans too
            position += int.from_bytes(data[position : position + 2], "big")
    return count
