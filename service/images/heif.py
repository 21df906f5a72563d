"""Read HEIC and AVIF, which phones write in the container of ISO/IEC 23008-12.

Pillow reads AVIF. HEIC needs pi-heif (libheif without the encoder x265, which is under the GPL)
or pillow-heif. Both turn the picture as the container's own properties say, which take precedence
over EXIF data; 10 and 12 bits become 8.
"""

from __future__ import annotations

import io
from importlib import import_module
from typing import Any

from PIL import AvifImagePlugin, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile

from service.errors import InvalidImage

LIBRARIES = ("pi_heif", "pillow_heif")
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
GENERIC_BRANDS = {b"mif1", b"msf1"}
MOST_BRANDS = 100  # files have about five
FORMATS = ("AVIF", "HEIF")  # as Pillow and the library call them
MEDIA_TYPES = ("image/avif", "image/heic", "image/heif")

# One thread per photo: photos are decoded in parallel anyway, and each thread reserves address
# space, which is limited.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _loaded() -> Any:
    """Return the library for HEIC, or None if none is installed."""
    for name in LIBRARIES:
        try:
            library = import_module(name)
        except ImportError:
            continue
        options = library.options
        options.DECODE_THREADS = 1  # as above
        # Only the photo itself: a hostile file may have many other pictures.
        options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
        return library
    return None


LIBRARY = _loaded()


def readable() -> tuple[str, ...]:
    """Return the names of the formats that can be read here."""
    avif = ("AVIF",) if features.check("avif") else ()
    return (*avif, "HEIC") if LIBRARY else avif


def is_heif(data: bytes) -> bool:
    """Return whether the bytes start like a HEIC or AVIF file."""
    return not _brands(data).isdisjoint(AVIF_BRANDS | HEIC_BRANDS | GENERIC_BRANDS)


def read_header(data: bytes) -> ImageFile:
    """Read the header; raises InvalidImage, also if the library for the format is missing."""
    if not AVIF_BRANDS.isdisjoint(_brands(data)):
        if not features.check("avif"):
            raise InvalidImage("this Pillow reads no AVIF: send JPEG or PNG")
        reader: Any = AvifImageFile
    elif LIBRARY is None:
        raise InvalidImage(
            "HEIC needs the extra `heic` of the service (pip install '.[heic]'), which is not "
            "installed: send JPEG or PNG"
        )
    else:
        reader = LIBRARY.HeifImageFile
    try:
        image: ImageFile = reader(io.BytesIO(data))
    except Exception as error:  # parsers of hostile files fail in many ways
        raise InvalidImage(f"the image's header is broken: {error}") from None
    return image


def _brands(data: bytes) -> set[bytes]:
    """Return the brands of the first box of the file, empty for other formats."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * MOST_BRANDS)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
