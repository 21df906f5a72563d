"""Prepare a photo for upload."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.client.errors import ClientError, UsageError
from service.client.inputs import InputPhoto
from service.client.pictures import PNG, size_of
from service.client.plain import sentence
from service.client.protocol import HEIF_BRANDS, media_type

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.TiffImagePlugin import TiffImageFile

JPEG_QUALITY = 95  # higher quality makes larger files, but not better masks


# Modes that every decoder reads alike. All others (CMYK, 16-bit and float samples, unusual TIFF
# files) are sent unchanged, for the service to decode.
SAME_MODE = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}
# Tag -> its default: bits, photometric, extra samples, planes, sample format (TIFF 6.0).
PLAIN_TIFF: dict[int, Any] = {258: (1,), 262: None, 338: None, 284: 1, 339: (1,)}
MOST_PIXELS = 500_000_000  # 1.5 GB decoded; larger photos are sent unchanged
MANY_PIXELS = 50_000_000  # larger photos are decoded one at a time
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes to send, and the digest of the original photo."""

    body: bytes = field(repr=False)
    sha256: str
    unshrunk: str | None = None  # why the photo was not shrunk in spite of --max-side


def prepare(photo: InputPhoto, max_side: int | None) -> Upload:
    """Read the photo, and shrink it if requested; raises OSError if it cannot be read."""
    content = photo.read()
    digest = hashlib.sha256(content).hexdigest()
    if max_side is None:
        return Upload(content, digest)
    try:
        return Upload(shrink(content, max_side), digest)
    except UnshrinkableError as error:
        return Upload(content, digest, str(error))


class UnshrinkableError(ClientError):
    """The photo is too large, and only the service can decode it."""


def require_pillow(option: str) -> None:
    """Raise UsageError unless Pillow is installed."""
    if importlib.util.find_spec("PIL") is None:
        raise UsageError(f"{option} needs Pillow: pip install pillow (the extra `pictures`)")


def shrink(content: bytes, max_side: int) -> bytes:
    """Return the photo upright, with its longer side at most `max_side` pixels, or unchanged.

    JPEGs become JPEGs, all else PNG, with the photo's own transparency and colour profile, so that
    the service sees what it would see of the photo itself. Raises UnshrinkableError for larger
    photos that are not plain enough. Other files are returned unchanged: the service decides
    whether they are photos.
    """
    from PIL import Image  # noqa: PLC0415 - the one option that needs it

    size = size_of(content)
    if size is None and media_type(content) in HEIF_BRANDS.values():
        raise UnshrinkableError("HEIC is left to the service to decode")
    if size is None or max(size) <= max_side:
        return content
    if size[0] * size[1] > MOST_PIXELS:
        raise UnshrinkableError(f"{size[0]} x {size[1]} pixels are too many to decode here")
    alone = ONE_AT_A_TIME if size[0] * size[1] > MANY_PIXELS else nullcontext()
    try:
        with alone, _opened(content) as image:
            return _shrunk(image, max_side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnshrinkableError(f"Pillow cannot decode it: {sentence(error)}") from error


def _opened(content: bytes) -> Image:
    """Open with the reader of the format: `Image.open` refuses more than 179 megapixels."""
    from PIL import (  # noqa: PLC0415 - as in `shrink`
        BmpImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    readers: dict[str, Callable[[io.BytesIO], Image]] = {
        "image/jpeg": JpegImagePlugin.jpeg_factory,
        "image/png": PngImagePlugin.PngImageFile,
        "image/webp": WebPImagePlugin.WebPImageFile,
        "image/bmp": BmpImagePlugin.BmpImageFile,
        "image/tiff": TiffImagePlugin.TiffImageFile,
    }
    if content.startswith(PNG) and content[24:25] == b"\x10":
        raise UnshrinkableError("a PNG of 16 bits is left to the service to decode")
    kind = media_type(content)
    if kind not in readers:
        raise UnshrinkableError(f"{kind} is left to the service to decode")  # AVIF
    image = readers[kind](io.BytesIO(content))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and not _is_plain(image):
        raise UnshrinkableError("a TIFF of this kind is left to the service to decode")
    return image


def _is_plain(tiff: TiffImageFile) -> bool:
    """Return whether a TIFF is one image of interleaved 8-bit grey or RGB, without extras."""
    tags = {tag: tiff.tag_v2.get(tag, default) for tag, default in PLAIN_TIFF.items()}
    samples = {"L": 1, "RGB": 3}.get(tiff.mode)
    expected = {**PLAIN_TIFF, 258: (8,) * (samples or 0), 262: 1 if tiff.mode == "L" else 2}
    tags[339] = (1,) if set(tags[339]) == {1} else tags[339]
    return samples is not None and tags == expected and tiff.n_frames == 1


def _shrunk(image: Image, max_side: int) -> bytes:
    from PIL import Image as pillow  # noqa: N813, PLC0415 - a module in spite of its name
    from PIL import ImageOps  # noqa: PLC0415

    if image.mode not in SAME_MODE:
        raise UnshrinkableError(f"mode {image.mode} is left to the service to decode")
    profile = image.info.get("icc_profile")
    is_jpeg = image.format in {"JPEG", "MPO"}
    image.draft(None, (max_side, max_side))  # JPEGs decode at 1/2, 1/4 or 1/8 for less
    upright = ImageOps.exif_transpose(image)
    mode = "RGBA" if "transparency" in upright.info else SAME_MODE[upright.mode]
    if profile is not None and upright.mode == "L" != mode:
        raise UnshrinkableError("a grey picture with a colour profile and transparency")
    plain = upright if upright.mode == mode else upright.convert(mode)
    plain.thumbnail((max_side, max_side), pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if is_jpeg:
        options = {"quality": JPEG_QUALITY, "subsampling": 0}
        plain.save(buffer, "JPEG", icc_profile=profile, **options)
    else:
        plain.save(buffer, "PNG", icc_profile=profile, compress_level=1)
    return buffer.getvalue()
