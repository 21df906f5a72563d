"""Read photos from disk, the same way for training, evaluation and prediction.

Photos become sRGB, rotated as their EXIF orientation says; broken EXIF data is ignored.
Colour profiles are applied, transparent pixels become white, and 16 bits are reduced to 8 as
`pixels.depth` says. The service does the same with clients' photos. Files that Pillow would read
wrongly are refused: a few kinds of TIFF, and samples whose range is unknown.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pixels import bands, depth, exif, jpeg, tiff
from pixels.bands import PHOTO, Bands, Samples
from pixels.srgb import to_srgb

# Pillow's exceptions for files that are damaged, no picture at all, or too large to be safe.
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a file with Pillow.

    A damaged file, one of another format or a too large one raises an OSError that names
    it and has no `errno`. A missing or unreadable file keeps the system's OSError.
    """
    try:
        with Image.open(path) as image:
            yield image
    except PILLOW_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(f"{path} cannot be read: {error}") from error


Size = tuple[int, int]
Picture = Image.Image | Bands  # an RGB photo, or a file of more bands


def open_picture(path: Path, samples: Samples = PHOTO) -> Picture:
    """Decode a file for a network that takes `samples`; raises OSError like `open_photo`."""
    if samples.channels == PHOTO.channels:
        return open_photo(path)
    data = path.read_bytes()
    try:
        tags = _tags(data, samples)
        if wrong := bands.problem(tags):
            raise ValueError(wrong)
        return Bands(bands.in_bytes(bands.read(data, tags), samples.range))
    except Exception as error:  # parsers of damaged files fail in many ways
        raise OSError(f"{path} cannot be read: {error}") from error


def _tags(data: bytes, samples: Samples) -> tiff.Tags:
    """Parse the directory of a TIFF; raises ValueError where it has not these bands."""
    if not tiff.is_tiff(data):
        raise ValueError(f"it is no TIFF, and the network takes {samples.channels} bands")
    tags = tiff.directory(data)
    if problem := bands.fitting(samples, bands.count(tags)):
        raise ValueError(problem)
    pixels = tiff.first(tags, tiff.WIDTH, 0) * tiff.first(tags, tiff.HEIGHT, 0)
    if Image.MAX_IMAGE_PIXELS and pixels > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow's own limit
        raise ValueError(f"{pixels} pixels are too many: cut it into tiles, gdal_retile")
    return tags


def read_picture(path: Path, samples: Samples) -> NDArray[np.uint8]:
    """Decode a file as an array, (H, W, C) uint8; raises OSError like `open_photo`."""
    return np.asarray(open_picture(path, samples))


def shown(pixels: NDArray[np.uint8]) -> Image.Image:
    """A picture of (H, W, C) uint8: of several bands the first three, as red, green and blue."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def open_photo(path: Path) -> Image.Image:
    """Decode a photo as RGB; raises OSError for files that are no picture or too large."""
    with opened(path) as image:
        return _decoded(image, path)


def open_reduced(path: Path, side: int) -> tuple[Image.Image, Size] | None:
    """Decode a large JPEG with about `side` pixels on its longer side; None for all other photos.

    Also returns the photo's own size (W, H). The service decodes JPEGs in the same way. Errors as
    for `open_photo`.
    """
    with opened(path) as image:
        stored, size = image.size, _upright_size(image)
        jpeg.reduce(image, side)
        return None if image.size == stored else (_decoded(image, path), size)


def _decoded(image: Image.Image, path: Path) -> Image.Image:
    if problem := _misread(image):
        raise ValueError(problem)
    return rgb(upright(depth.load(image, lambda: Image.open(path))))


UNSCALED = ("I", "F")  # modes that `convert` clips to 0 to 255, whatever their range is
RGB_OF_BANDS = (
    "for a network of more channels set `channels` in dataset.toml and model.channels; for RGB, "
    "gdal_translate -b 1 -b 2 -b 3 IN OUT"
)
CURE = "convert it: gdal_translate -ot Byte -scale -co INTERLEAVE=PIXEL IN OUT"


def _misread(image: Image.Image) -> str:
    """Return why Pillow would decode this image to wrong pixels; empty if it would not."""
    if image.mode in UNSCALED:
        return f"its samples of 32 bits have an unknown range; {CURE}"
    if not isinstance(image, TiffImageFile):
        return ""
    if bands.colors(image.tag_v2) > PHOTO.channels:
        return f"it has {bands.count(image.tag_v2)} bands, not the 3 of RGB; {RGB_OF_BANDS}"
    return _misread_tiff(image)


def _misread_tiff(image: TiffImageFile) -> str:
    tags = image.tag_v2
    most = max(tiff.values(tags, tiff.BITS, 1))
    if most <= 8:
        return ""
    if tags.get(tiff.PLANAR) == tiff.IN_PLANES:
        return f"a TIFF of {most} bits in planes is read scrambled; {CURE}"
    if most < 16 or tags.get(tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO:
        return f"a TIFF of {most} bits of this kind is read too dark or as a negative; {CURE}"
    return ""


def upright_size(path: Path, samples: Samples = PHOTO) -> Size:
    """(W, H) of a photo once its EXIF orientation has turned it; reads the header alone.

    A file of more bands is read whole.
    """
    if samples.channels != PHOTO.channels:
        return open_picture(path, samples).size
    with opened(path) as image:
        return _upright_size(image)


def jpeg_size(path: Path) -> Size | None:
    """(W, H) of a JPEG as for `upright_size`, from the header alone; None for other formats."""
    with opened(path) as image:
        return _upright_size(image) if image.format in jpeg.FORMATS else None


def _upright_size(image: Image.Image) -> Size:
    width, height = image.size
    return (height, width) if turn(image) in exif.ON_THEIR_SIDE else (width, height)


def read_photo(path: Path) -> NDArray[np.uint8]:
    """Decode a photo as an array, (H, W, 3) uint8; raises OSError like `open_photo`."""
    return np.asarray(open_photo(path))


@dataclass(frozen=True)
class Decoded:
    """A photo in memory, (H, W, C) uint8: a source for `model.network.results`."""

    pixels: NDArray[np.uint8]

    @property
    def size(self) -> Size:
        """(W, H)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def reduced(self, _side: int) -> tuple[NDArray[np.uint8], Size]:
        """Return the pixels, and the photo's size (W, H)."""
        return self.pixels, self.size


@dataclass(frozen=True)
class PhotoFile:
    """A file for a network that takes `samples`: a source for `model.network.results`.

    It is decoded when its pixels are needed, and whole at most once. All methods raise OSError
    like `open_photo`.
    """

    path: Path
    samples: Samples = PHOTO

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The photo, (H, W, C) uint8."""
        return read_picture(self.path, self.samples)

    @cached_property
    def size(self) -> Size:
        """(W, H), upright. Of a JPEG only the header is read; another file is decoded."""
        size = jpeg_size(self.path) if self._is_rgb else None
        return size or Decoded(self.pixels).size

    def reduced(self, side: int) -> tuple[NDArray[np.uint8], Size]:
        """Return the photo, and its own size (W, H).

        A large JPEG is decoded with about `side` pixels on its longer side, as in the service.
        """
        found = open_reduced(self.path, side) if self._is_rgb else None
        if found is None:
            return Decoded(self.pixels).reduced(side)
        image, size = found
        return np.asarray(image), size

    @property
    def _is_rgb(self) -> bool:
        return self.samples.channels == PHOTO.channels


def as_source(
    photo: Path | str | Image.Image | NDArray[np.uint8], samples: Samples = PHOTO
) -> Decoded | PhotoFile:
    """Return a photo for a network, whose file is not read yet. Errors as for `as_photo`."""
    if isinstance(photo, Path | str):
        return PhotoFile(Path(photo), samples)
    return Decoded(as_photo(photo, samples))


def as_photo(
    source: Path | str | Image.Image | NDArray[np.uint8], samples: Samples = PHOTO
) -> NDArray[np.uint8]:
    """(H, W, C) uint8 of a file or of a Pillow image, turned upright; an array as it is.

    Raises OSError for files that are no picture or too large, TypeError for anything else.
    """
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, Image.Image):
        return np.asarray(rgb(upright(_loaded(source))))
    if isinstance(source, Path | str):
        return read_picture(Path(source), samples)
    raise TypeError(
        f"photo is a {type(source).__name__}; give a path, a Pillow image or uint8 (H, W, 3)"
    )


def _loaded(image: Image.Image) -> Image.Image:
    """Load an image that somebody has opened; one without a file is loaded as Pillow does."""
    path = getattr(image, "filename", "")
    return depth.load(image, lambda: Image.open(path)) if path else image


def orientation(
    source: Path | str | Image.Image | NDArray[np.uint8], samples: Samples = PHOTO
) -> int:
    """The EXIF orientation that `as_photo` turns a photo by, 1 to 8.

    1 for none, and for what cannot be read: `as_photo` then says why.
    """
    if isinstance(source, np.ndarray):
        return 1
    try:
        value = _orientation_tag(source, samples)
    except Exception:  # parsers of damaged files fail in many ways
        return 1
    return value if value in exif.TURNS else 1


def _orientation_tag(source: Path | str | Image.Image, samples: Samples) -> int:
    if isinstance(source, Image.Image):
        return turn(source)
    if samples.channels != PHOTO.channels:
        return tiff.first(tiff.directory(Path(source).read_bytes()), tiff.ORIENTATION, 1)
    with opened(Path(source)) as image:
        return turn(image)


def rgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB: 16-bit grey is reduced to 8 bits, transparent pixels become white."""
    return to_srgb(image, image.info.get("icc_profile"))


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, or as it is where the EXIF is broken."""
    return exif.upright(image, turn(image))


def turn(image: Image.Image) -> int:
    """Return an image's EXIF orientation as `exif.orientation` does, without Pillow's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on a damaged EXIF block
        return exif.orientation(image)
