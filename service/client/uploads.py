"""From a photo to the bytes that are sent."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass, field

from service.client.errors import UsageError
from service.client.inputs import Photo

JPEG_QUALITY = 95  # beyond it files grow faster than masks improve; 4:4:4 keeps colour edges


@dataclass(frozen=True, slots=True)
class Upload:
    """What is sent, and the digest of the photo that it was made from."""

    body: bytes = field(repr=False)
    sha256: str


def prepare(photo: Photo, max_side: int | None) -> Upload:
    """Reads the photo, shrinks it if asked to; OSError if it cannot be read."""
    content = photo.read()
    digest = hashlib.sha256(content).hexdigest()
    return Upload(content if max_side is None else shrink(content, max_side), digest)


def require_pillow(option: str) -> None:
    """UsageError unless Pillow is there."""
    if importlib.util.find_spec("PIL") is None:
        raise UsageError(f"{option} needs Pillow: pip install pillow (the extra `pictures`)")


def shrink(content: bytes, max_side: int) -> bytes:
    """The photo with its longer side at most `max_side` pixels, upright; else as it came.

    JPEGs become JPEGs, all else PNG. What Pillow cannot open goes out untouched:
    whether it is a photo is for the service to say.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415 - the one option that needs it

    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) <= max_side:
                return content
            is_jpeg = image.format == "JPEG"
            image.draft("RGB", (max_side, max_side))  # JPEGs decode at 1/2, 1/4 or 1/8 for less
            upright = ImageOps.exif_transpose(image).convert("RGB")
            upright.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return content
    buffer = io.BytesIO()
    if is_jpeg:
        upright.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
