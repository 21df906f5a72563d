"""From a photo to the bytes that are sent."""

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
from service.client.inputs import Photo
from service.client.pictures import size_of
from service.client.plain import sentence
from service.client.protocol import media_type

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.TiffImagePlugin import TiffImageFile

JPEG_QUALITY = 95  # beyond it files grow faster than masks improve; 4:4:4 keeps colour edges


# Of these the colours have one meaning, whoever decodes them. All else goes out as it is, for the
# service to decode: CMYK, 16-bit and float samples, whatever a TIFF may say of its samples.
SAME_MODE = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}
# Tag -> its default: bits, photometric, extra samples, planes, sample format (TIFF 6.0).
PLAIN_TIFF: dict[int, Any] = {258: (1,), 262: None, 338: None, 284: 1, 339: (1,)}
MOST_PIXELS = 500_000_000  # decoded here: 1.5 GB; larger ones go out as they are
MANY_PIXELS = 50_000_000  # larger photos are decoded one at a time
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Upload:
    """What is sent, and the digest of the photo that it was made from."""

    body: bytes = field(repr=False)
    sha256: str
    unshrunk: str | None = None  # why it is as large as it was, in spite of --max-side


def prepare(photo: Photo, max_side: int | None) -> Upload:
    """Reads the photo, shrinks it if asked to; OSError if it cannot be read."""
    content = photo.read()
    digest = hashlib.sha256(content).hexdigest()
    if max_side is None:
        return Upload(content, digest)
    try:
        return Upload(shrink(content, max_side), digest)
    except UnshrinkableError as error:
        return Upload(content, digest, str(error))


class UnshrinkableError(ClientError):
    """The photo is larger than wanted, and only the service knows how to decode it."""


def require_pillow(option: str) -> None:
    """UsageError unless Pillow is there."""
    if importlib.util.find_spec("PIL") is None:
        raise UsageError(f"{option} needs Pillow: pip install pillow (the extra `pictures`)")


def shrink(content: bytes, max_side: int) -> bytes:
    """The photo with its longer side at most `max_side` pixels, upright; else as it came.

    JPEGs become JPEGs, all else PNG, with the photo's own transparency and colour profile, so
    that the service sees what it would see of the photo itself. Raises UnshrinkableError for
    larger photos that are not plain enough. What is no photo goes out untouched: whether it is
    one is for the service to say.
    """
    from PIL import Image  # noqa: PLC0415 - the one option that needs it

    size = size_of(content)
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
    """By the reader of its format: `Image.open` refuses above 179 megapixels."""
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
    image = readers[media_type(content)](io.BytesIO(content))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and not _is_plain(image):
        raise UnshrinkableError("a TIFF of this kind is left to the service to decode")
    return image


def _is_plain(tiff: TiffImageFile) -> bool:
    """One image of 8-bit grey or RGB samples, pixel by pixel, black at 0, nothing beside them."""
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
        raise UnshrinkableError("grey with a colour profile and transparency")
    plain = upright if upright.mode == mode else upright.convert(mode)
    plain.thumbnail((max_side, max_side), pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if is_jpeg:
        options = {"quality": JPEG_QUALITY, "subsampling": 0}
        plain.save(buffer, "JPEG", icc_profile=profile, **options)
    else:
        plain.save(buffer, "PNG", icc_profile=profile, compress_level=1)
    return buffer.getvalue()
