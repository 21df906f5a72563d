"""Turn pictures upright as their EXIF data says.

Pillow's `ImageOps.exif_transpose` also writes the EXIF data again, which fails for many that are
damaged. A picture whose size was read from the header would then lie on its side.
"""

from __future__ import annotations

from PIL import Image

ORIENTATION = 0x0112  # the tag
# How each value turns a picture: the EXIF standard, as in ImageOps.exif_transpose.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_THEIR_SIDE = (5, 6, 7, 8)  # these exchange width and height
# Where Pillow keeps EXIF data, and XMP data with an orientation, of an image.
KEPT_IN = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def orientation(image: Image.Image) -> int:
    """Return an image's orientation, 1 to 8; 1, as stored, where the EXIF data is broken."""
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # parsers of damaged files fail in many ways
        return 1
    return value if value in TURNS else 1


def upright(image: Image.Image, value: int) -> Image.Image:
    """Return an image turned as an orientation says, without the data that says so."""
    if value not in TURNS:
        return image
    turned = image.transpose(TURNS[value])
    for key in KEPT_IN:
        turned.info.pop(key, None)
    return turned
