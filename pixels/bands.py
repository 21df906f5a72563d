"""Read TIFF files of several bands, as satellites and drones make them, as (H, W, C) arrays.

Pillow reads pictures, of four samples of 16 bits at most. Its decoder, libtiff, can unpack more:
a new directory describes each plane, or each row of interleaved samples, as grey, and NumPy puts
the samples in order. So training and service read bands without another library: rasterio is
25 MB of GDAL, with drivers for a hundred formats that a service would have to trust, and
tifffile needs imagecodecs, of about the same size, for LZW. Tests compare with GDAL's own files.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pixels import tiff
from pixels.tiff import Tags, TiffError, first

MOST_CHANNELS = 64
Box = tuple[float, float, float, float]
SampleRange = tuple[float, float]
Stored = NDArray[np.uint8] | NDArray[np.uint16]  # (H, W, C), or (H, W)

# None, LZW, deflate (both numbers), PackBits, LZMA, Zstandard. JPEG and others decode to colours.
COMPRESSIONS = {1, 5, 8, 32946, 32773, 34925, 50000}
DIFFERENCES = 2  # tag 317: each sample is stored as the difference from the pixel to its left
CURE = "gdal_translate -co COMPRESS=DEFLATE -co PREDICTOR=2 IN OUT"
WRITE = f"write it again: {CURE}"


class Samples(NamedTuple):
    """The samples that a network takes: number of channels, and range of 16-bit samples."""

    channels: int = 3
    # The 16-bit values that become 0 and 255; None: 0 and 65535.
    range: SampleRange | None = None


PHOTO = Samples()


def checked_range(limits: SampleRange | None) -> SampleRange | None:
    """Return the range; raises ValueError unless it rises within 0 to 65535."""
    if limits is not None and not 0 <= limits[0] < limits[1] <= 65_535:
        raise ValueError(
            f"sample_range={list(limits)}: give the 16-bit values that become 0 and 255, the "
            "smaller one first, from 0 to 65535"
        )
    return limits


def check_range(samples: Samples) -> None:
    """Raise ValueError for a range that `checked_range` refuses, and for any range of RGB."""
    if samples.range is not None and samples.channels == PHOTO.channels:
        raise ValueError(
            f"sample_range={list(samples.range)} only applies to more than 3 channels; leave it out"
        )
    checked_range(samples.range)


def fitting(samples: Samples, channels: int) -> str:
    """Return why a file with this many channels does not fit a network; empty if it does."""
    if channels == samples.channels:
        return ""
    if samples.channels == PHOTO.channels:
        return (
            f"it has {channels} bands, and the network takes the 3 of RGB: choose them with "
            "gdal_translate -b 1 -b 2 -b 3 IN OUT"
        )
    return (
        f"it has {channels} channels, and the network takes {samples.channels}: a TIFF of "
        f"{samples.channels} bands of 8 or 16 bits"
    )


def count(tags: Tags) -> int:
    """The number of samples of each pixel."""
    return first(tags, tiff.SAMPLES, 1)


def colors(tags: Tags) -> int:
    """The number of samples that are not declared as alpha, of grey, RGB or bands; else 0."""
    if first(tags, tiff.PHOTOMETRIC, -1) not in {tiff.BLACK_IS_ZERO, tiff.RGB}:
        return 0
    return count(tags) - sum(kind in tiff.ALPHAS for kind in tiff.values(tags, tiff.EXTRA))


def problem(tags: Tags) -> str:
    """Return why the bands of a file cannot be read; empty if they can be."""
    bits = {*tiff.values(tags, tiff.BITS, 1)}
    if bits not in ({8}, {16}):
        return (
            f"its samples have {', '.join(sorted(map(str, bits)))} bits, 8 or 16 are read: "
            "gdal_translate -ot UInt16 -scale IN OUT"
        )
    if not {*tiff.values(tags, tiff.FORMAT, tiff.UNSIGNED)} <= {tiff.UNSIGNED, tiff.UNDEFINED}:
        return "its samples are not unsigned integers: gdal_translate -ot UInt16 -scale IN OUT"
    if first(tags, tiff.PHOTOMETRIC, -1) not in {tiff.BLACK_IS_ZERO, tiff.RGB}:
        return f"its samples are not bands but colours of another kind; {WRITE}"
    if first(tags, tiff.COMPRESSION, 1) not in COMPRESSIONS:
        return f"its compression is not one that keeps bands; {WRITE}"
    if first(tags, tiff.PREDICTOR, 1) not in {1, DIFFERENCES}:
        return f"its predictor is for floating-point samples; {WRITE}"
    return ""


def read(data: bytes, tags: Tags) -> Stored:
    """Decode all bands of a file without a `problem`, upright: (H, W, C) uint8 or uint16.

    Raises TiffError for a directory that is broken, and what Pillow raises for broken data.
    """
    samples = count(tags)
    if first(tags, tiff.PLANAR, 1) == tiff.IN_PLANES:
        upright = {tag: value for tag, value in tags.items() if tag != tiff.ORIENTATION}
        planes = [_grey(tiff.plane(data, upright, number)) for number in range(samples)]
        bands: Any = np.stack(planes, axis=-1)  # of one type, as the planes
    else:
        bands = _interleaved(data, tags, samples)
    return turned(bands, first(tags, tiff.ORIENTATION, 1))


def _interleaved(data: bytes, tags: Tags, samples: int) -> Stored:
    """Read rows of W * C grey samples, and undo the differences between pixels."""
    width, tile = first(tags, tiff.WIDTH, 0), first(tags, tiff.TILE_WIDTH, 0)
    own = {tag: tags[tag] for tag in tiff.COPIED if tag in tags and tag != tiff.ORIENTATION}
    own |= {tag: tags[tag] for tag in tiff.PLACES if tag in tags}
    own |= {tiff.WIDTH: width * samples, tiff.PREDICTOR: 1, tiff.SAMPLES: 1, tiff.PLANAR: 1}
    own |= {tiff.BITS: first(tags, tiff.BITS, 8), tiff.FORMAT: tiff.UNSIGNED}
    own[tiff.PHOTOMETRIC] = tiff.BLACK_IS_ZERO
    if tile:
        own[tiff.TILE_WIDTH] = tile * samples
    grey = _grey(tiff.with_directory(data, own))
    bands = grey.reshape(len(grey), width, samples)
    if first(tags, tiff.PREDICTOR, 1) == DIFFERENCES:
        for start in range(0, width, tile or width):  # from the left edge of each tile
            part = bands[:, start : start + (tile or width)]
            part[:] = part.cumsum(axis=1, dtype=bands.dtype)  # beyond the type they wrap around
    return bands


def _grey(data: bytes) -> Stored:
    """Decode a file of one grey sample, (H, W), in the machine's byte order."""
    with TiffImageFile(io.BytesIO(data)) as image:
        image.load()
        pixels = np.array(image)
    if pixels.dtype == np.uint8 and pixels.ndim == 2:
        return pixels
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return pixels.astype(np.uint16)
    raise TiffError(f"its samples were read as {pixels.dtype}, not as 8 or 16 bits")


def turned(bands: Stored, orientation: int) -> Stored:
    """Turn (H, W, C) upright, as the orientation tag says."""
    if orientation in (5, 6, 7, 8):
        bands = bands.transpose(1, 0, 2)  # 5
    if orientation in (2, 3, 6, 7):
        bands = bands[:, ::-1]
    if orientation in (3, 4, 7, 8):
        bands = bands[::-1]
    return bands


def in_bytes(bands: Stored, limits: SampleRange | None) -> NDArray[np.uint8]:
    """Bring samples to 8 bits: `limits` of 16-bit ones become 0 and 255, those beyond clip.

    Without limits the eight highest bits stay. Samples of 8 bits stay as they are.
    """
    if bands.dtype == np.uint8:
        return np.ascontiguousarray(bands, dtype=np.uint8)
    if limits is None:
        return np.ascontiguousarray(bands >> 8, dtype=np.uint8)
    low, high = limits
    table = (np.arange(65_536, dtype=np.float64) - low) * 255 / (high - low)
    return (table + 0.5).clip(0, 255).astype(np.uint8)[bands]


@dataclass(frozen=True)
class Bands:
    """Decoded bands, with the part of Pillow's Image that the training uses."""

    pixels: NDArray[np.uint8]  # (H, W, C)

    @property
    def size(self) -> tuple[int, int]:
        """(W, H)."""
        return self.width, self.height

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return len(self.pixels[0])

    @property
    def height(self) -> int:
        """The number of rows."""
        return len(self.pixels)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return self.pixels.copy() if copy else self.pixels

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BILINEAR,
        box: Box | None = None,
    ) -> Bands:
        """Resize each band by itself, (W, H); only bilinearly."""
        if resample is not Image.Resampling.BILINEAR:
            raise ValueError(f"{resample!r}: bands are resized bilinearly")
        return Bands(resized(self.pixels, size, box=box))


def resized(
    bands: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    box: Box | None = None,
    reducing_gap: float | None = None,
) -> NDArray[np.uint8]:
    """Resize (H, W, C) to a size (W, H), bilinearly and each band by itself, as Pillow does."""
    resample = Image.Resampling.BILINEAR
    each = (Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(bands, -1, 0))
    made = [np.asarray(e.resize(size, resample, box=box, reducing_gap=reducing_gap)) for e in each]
    return np.stack(made, axis=-1)
