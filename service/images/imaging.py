"""Decode photos, fit them into the model's input, and encode the results.

Everything here runs in a worker thread. The sender is not trusted: format and size are
checked in the header before a pixel is decoded.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pixels import depth, exif, jpeg
from pixels.bands import PHOTO, Samples, fitting, resized
from pixels.srgb import to_srgb
from pixels.tiff import is_tiff
from postprocess.results import png
from postprocess.results.encoders import enlarged
from postprocess.results.photo import Photo, as_image, shrunk
from postprocess.results.png import Rows
from postprocess.runs import Spread
from service.errors import ImageTooLarge, InvalidImage
from service.images import heif, scans, tags
from service.images.chunks import readable
from service.images.tiff import Tiff, open_tiff
from service.inference.contract import InputSize

# Called directly: `Image.open` also applies Pillow's own pixel limit, a global that other code
# in the process may rely on.
READERS = {
    "JPEG": jpeg_factory,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
}
FORMATS = (*READERS, "TIFF", *heif.readable())
END_OF_JPEG = b"\xff\xd9"
FILLER = bytes([0xAA, 0x55, 0x33, 0xCC]) * 16  # contains no JPEG marker
MEDIA_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff"),
    *heif.MEDIA_TYPES,
)
MAX_RLE_BYTES = 2_000_000  # of a BMP: Pillow decodes run lengths in Python
UNSCALED = ("I", "F")  # Pillow would clip them to 0 to 255, whatever their range is
EXIF = b"Exif\0\0"


@dataclass(frozen=True)
class EncodedPhoto(Photo):
    """A photo whose file is kept, so that its picture can be decoded when it is needed."""

    data: bytes = field(default=b"", repr=False)

    @cached_property
    def whole(self) -> Image.Image:
        """The picture of `size`, decoded now if need be; raises ValueError if nothing was kept."""
        if self.picture is None and self.data:
            image = decode(_opened(self.data), reduce_to=max(self.size)).image
        else:
            image = as_image(self.picture)
        return shrunk(image, self.size)


@dataclass(frozen=True)
class DecodedPhoto:
    """A decoded photo, upright as its EXIF data says."""

    image: Image.Image  # sRGB; possibly smaller than `size`. Of several bands the first three
    size: tuple[int, int]  # (W, H) of the photo itself
    orientation: int = 1  # the applied value of the EXIF tag; 1: as stored
    bands: NDArray[np.uint8] | None = None  # (H, W, C), where there are more than three

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], orientation: int = 1) -> DecodedPhoto:
        """Return the photo of decoded pixels (H, W, C)."""
        shown = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        bands = None if pixels.shape[2] == PHOTO.channels else pixels
        return cls(shown, shown.size, orientation, bands)

    @property
    def photo(self) -> EncodedPhoto:
        """The photo with the decoded image, and with its picture if that is as large."""
        picture = self.image if self.image.size == self.size else None
        return EncodedPhoto(self.size, self.orientation, picture, self.image)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The pixels for the model, (H, W, C)."""
        return np.asarray(self.image) if self.bands is None else self.bands

    def shrunk(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the pixels for the model, shrunk to a size (W, H)."""
        if self.bands is None:
            return np.asarray(shrunk(self.image, size))
        if size == self.size:
            return self.bands
        return resized(self.bands, size, reducing_gap=2.0)


@dataclass(frozen=True)
class Fitted:
    """A photo fitted into the model's input."""

    pixels: NDArray[np.uint8]  # (H, W, C)
    valid: tuple[int, int]  # (h, w) of the photo's part, at the top left


@dataclass(frozen=True)
class Opened:
    """An encoded image whose header has been read."""

    data: bytes
    image: Image.Image  # not yet decoded
    profile: bytes | None  # ICC
    tiff: Tiff | None = None
    scans: int = 1  # of a JPEG
    is_deep: bool = False  # samples of 16 bits, which may have to be decoded twice

    @property
    def memory(self) -> int:
        """The pixels to reserve memory for: some formats need twice as much for each pixel."""
        heavy = self.image.format in {"WEBP", *heif.FORMATS} or self.is_deep
        times = 1 if self.tiff is None else self.tiff.memory
        return max(2 if heavy else 1, times) * self.pixels

    @property
    def work(self) -> int:
        """How long decoding takes, in pixels of a JPEG of one scan; a rough estimate."""
        if self.image.format in jpeg.FORMATS:  # a scan without data still visits every block
            return self.pixels * (20 + self.scans) // 20 + 2 * len(self.data)
        each = 6 if self.image.format in heif.FORMATS or self.is_deep else 3
        return max(each, self.memory // max(1, self.pixels)) * self.pixels

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) as stored."""
        return self.image.size

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return self.image.width * self.image.height


def open_checked(data: bytes, max_pixels: int, samples: Samples = PHOTO) -> Opened:
    """Read and check the header only, for a model that takes `samples`.

    Raises InvalidImage or ImageTooLarge.
    """
    if not data:
        raise InvalidImage("the body is empty: send the bytes of an image")
    opened = _opened(data, samples)
    if opened.image.mode in UNSCALED:
        raise InvalidImage("32-bit grey images have an unknown value range: send 8 or 16 bits")
    width, height = opened.size
    if opened.pixels > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {opened.pixels} pixels, "
            f"the limit is {max_pixels}: send a smaller image"
        )
    return opened


def _opened(data: bytes, samples: Samples = PHOTO) -> Opened:
    if is_tiff(data):
        tiff = open_tiff(data, samples)
        first = tiff.images[0]
        profile = first.info.get("icc_profile")
        return Opened(data, first, profile, tiff, is_deep=depth.is_deep(first))
    if samples.channels != PHOTO.channels:
        raise InvalidImage(f"this file cannot be read: {fitting(samples, PHOTO.channels)}")
    if heif.is_heif(data):
        image = heif.read_header(data)
        return Opened(data, image, image.info.get("icc_profile"))
    count = scans.count(data)
    data, profile = readable(data)
    image = _read_header(data)
    if len(data) > MAX_RLE_BYTES and any(tile[0] == "bmp_rle" for tile in image.tile):
        raise InvalidImage(
            f"a BMP of run lengths may have {MAX_RLE_BYTES} bytes: send it uncompressed or as PNG"
        )
    profile = profile or image.info.get("icc_profile")
    return Opened(data, image, profile, scans=count, is_deep=depth.is_deep(image))


def _read_header(data: bytes) -> ImageFile.ImageFile:
    """Read the header with the first reader that accepts the format, as `Image.open` does."""
    for reader in READERS.values():
        try:
            return reader(io.BytesIO(data))
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # not this format
        except Image.DecompressionBombError as error:  # WebP's reader always applies Pillow's limit
            raise ImageTooLarge(f"the image is too large: {error}") from None
        except Exception as error:  # parsers of hostile files fail in many ways
            raise InvalidImage(f"the image's header is broken: {error}") from None
    raise InvalidImage(f"not an image of a known format: send {', '.join(FORMATS)}")


def decode(opened: Opened, *, reduce_to: int | None = None) -> DecodedPhoto:
    """Decode an image and turn it upright; raises InvalidImage if it is truncated or broken.

    `reduce_to`: the pixels needed on the longer side. A JPEG may then be decoded at a half,
    a quarter or an eighth of its size, see `pixels.jpeg`.
    """
    try:
        return _decoded(opened, reduce_to)
    except InvalidImage:
        ended = _ended(opened)
        if ended is None:
            raise
        return _decoded(ended, reduce_to)


def _decoded(opened: Opened, reduce_to: int | None) -> DecodedPhoto:
    image = opened.image
    try:
        if image.format == "PNG":
            # Its EXIF data may follow the pixels, so Pillow loads them to find it. A load that
            # fails must fail here: the next one would return the rows before the damage.
            image.load()
        orientation = _orientation(image)  # now: Pillow removes it from a TIFF when it turns that
        size = (image.height, image.width) if orientation in exif.ON_THEIR_SIDE else image.size
        if opened.tiff is not None and opened.tiff.bands is not None:
            return DecodedPhoto.of(opened.tiff.bands.decode(), orientation)
        if opened.tiff is not None:
            oriented = opened.tiff.decode(_oriented)
            size = oriented.size  # Pillow turns TIFFs itself, when it opens or loads them
        else:
            if reduce_to is not None:
                jpeg.reduce(image, reduce_to)
            oriented = _oriented(
                depth.load(image, lambda: _opened(opened.data).image, deep=opened.is_deep)
            )
        if image.format in heif.FORMATS and oriented.size != size:
            raise ValueError(f"it has {oriented.size} pixels, its header says {size}")
        return DecodedPhoto(to_srgb(oriented, opened.profile), size, orientation)
    except Exception as error:  # decoders of hostile files fail in many ways
        raise InvalidImage(f"the image is truncated or broken: {error}") from None


def _ended(opened: Opened) -> Opened | None:
    """Return a JPEG that lacks only its end marker, with the marker; None for other files.

    After a complete scan, libjpeg skips bytes in front of the marker. In a truncated scan it
    decodes them as pixels, so that two different fillers give different pictures.
    """
    data = opened.data.removesuffix(b"\xff")
    if opened.image.format not in jpeg.FORMATS or data.endswith(END_OF_JPEG):
        return None
    try:
        plain, odd = (_opened(data + more + END_OF_JPEG) for more in (b"", FILLER))
        if plain.image.tobytes() != odd.image.tobytes():
            return None
        return _opened(data + END_OF_JPEG)
    except Exception:  # the file has other errors
        return None


def _orientation(image: Image.Image) -> int:
    data = image.info.get("exif")
    if isinstance(data, bytes):
        try:
            tags.check(data.removeprefix(EXIF).removeprefix(EXIF))
        except InvalidImage:  # ignored as other broken EXIF data
            return 1
    return exif.orientation(image)


def _oriented(image: Image.Image) -> Image.Image:
    return exif.upright(image, _orientation(image))


def fit(photo: DecodedPhoto, target: InputSize) -> Fitted:
    """Place a photo at the top left of the model's input, and shrink it if it is larger."""
    width, height = photo.size
    scale = min(1.0, target.width / width, target.height / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.empty((*target.around((h, w)), target.channels), np.uint8)
    pixels[:h, :w] = photo.shrunk((w, h))
    pixels[h:] = target.pad
    pixels[:h, w:] = target.pad
    return Fitted(pixels, (h, w))


def restore(labels: NDArray[np.uint8], fitted: Fitted, size: tuple[int, int]) -> Rows:
    """Cut the photo's part out of a label map and resize it to the photo's `size` (W, H)."""
    h, w = fitted.valid
    return enlarged(labels[:h, :w], spread(fitted, size))


def spread(fitted: Fitted, size: tuple[int, int]) -> Spread:
    """Return how many pixels of a photo of `size` (W, H) each row and column of its part gets.

    A pixel takes the label that is nearest to its centre. The photo was never enlarged, so each
    label gets at least one pixel.
    """
    h, w = fitted.valid
    return Spread(png.shares(h, size[1]), png.shares(w, size[0]))
