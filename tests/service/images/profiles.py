"""Create ICC profiles for the tests, so that none is shipped. ICC.1:2022, sections 7 to 10."""

from __future__ import annotations

import itertools
import struct

from PIL import ImageCms

D50 = (0.9642, 1.0, 0.8249)
# Adobe RGB's primaries, adapted to D50: much wider than sRGB in green.
PRIMARIES = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return (
        b"mluc"
        + bytes(4)
        + struct.pack(">LL", 1, 12)
        + b"enUS"
        + struct.pack(">LL", len(encoded), 28)
        + encoded
    )


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">LL", start + len(body), len(content))
        body += padded
    size = start + len(body)
    header = struct.pack(">L", size) + b"none" + b"\x04\x30\0\0" + kind + space + connection
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(*D50)
    return header.ljust(128, b"\0") + struct.pack(">L", len(tags)) + table + body


def wide_profile() -> bytes:
    """RGB with Adobe's primaries and a gamma of 2.2."""
    curve = b"curv" + bytes(4) + struct.pack(">LH", 1, round(2.2 * 256)) + bytes(2)
    tags = {b"desc": _text("wide"), b"cprt": _text("none"), b"wtpt": _xyz(*D50)}
    tags |= {name: _xyz(*values) for name, values in PRIMARIES.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def swapped_srgb_profile() -> bytes:
    """Little CMS's own sRGB profile, name included, with red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">L", profile, 128)[0]
    entries = {bytes(profile[at : at + 4]): at + 4 for at in range(132, 132 + 12 * count, 12)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    places = profile[red : red + 8], profile[green : green + 8]
    profile[red : red + 8], profile[green : green + 8] = places[1], places[0]
    return bytes(profile)


def cmyk_profile(grid: int = 2) -> bytes:
    """CMYK of dull inks: lightness and hue at the corners of the cube, as 8-bit Lab (lut8Type)."""
    points = []
    for cyan, magenta, yellow, black in itertools.product(
        [at / (grid - 1) for at in range(grid)], repeat=4
    ):
        lightness = max(0.0, 1 - 0.3 * (cyan + magenta + yellow) / 1.5 - 0.8 * black)
        a, b = 60 * (magenta - cyan), 60 * (yellow - (cyan + magenta) / 2)
        points += [round(255 * lightness), round(128 + a) & 255, round(128 + b) & 255]
    identity = bytes(range(256))
    matrix = _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft1" + bytes(4) + bytes([4, 3, grid, 0]) + matrix
    lut += identity * 4 + bytes(points) + identity * 3
    tags = {b"desc": _text("dull inks"), b"cprt": _text("none"), b"wtpt": _xyz(*D50)}
    return _profile(b"prtr", b"CMYK", b"Lab ", tags | {b"A2B0": lut})
