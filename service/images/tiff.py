"""Read TIFF files that Pillow cannot read, or reads wrongly.

Pillow identifies the samples by tags 258 (bits), 262 (photometric interpretation) and 338
(extra samples). It scrambles planar samples (tag 284) of more than 8 bits, ignores
white-is-zero and 12 used bits of 16, and does not read GDAL's default: three 16-bit bands
that are not declared as RGB. Such a file gets a new directory, appended to its data, that
Pillow and libtiff read correctly. Other unusual files are refused with a description. TIFF
revision 6.0, sections 2, 8 and 15.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pixels import bands, depth, tiff
from pixels.bands import PHOTO, Samples
from pixels.tiff import (
    ALPHA,
    BITS,
    BLACK_IS_ZERO,
    COMPRESSION,
    COPIED,
    COUNTS,
    EXTRA,
    FORMAT,
    HEIGHT,
    IN_PLANES,
    OFFSETS,
    PHOTOMETRIC,
    PLANAR,
    RGB,
    SAMPLES,
    TILE_COUNTS,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    UNDEFINED,
    UNSIGNED,
    WHITE_IS_ZERO,
    WIDTH,
    Tags,
)
from pixels.tiff import first as _one
from service.errors import InvalidImage
from service.images import scans
from service.images.refusals import refusals
from service.images.tags import check as check_tags

MEANINGS = {0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 5: "CMYK"}
MEANINGS |= {6: "YCbCr", 8: "CIE L*a*b*", 32803: "raw sensor data"}
FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
MOST_SAMPLES = {False: 6, True: 4}  # that Pillow reads, by `more than 8 bits`
# Also copied if the data are unchanged.
KEPT = (OFFSETS, COUNTS, TILE_OFFSETS, TILE_COUNTS, SAMPLES, PLANAR, FORMAT)
JPEG_COMPRESSIONS = (6, 7)
PARTS = ((OFFSETS, COUNTS), (TILE_OFFSETS, TILE_COUNTS), (513, 514))  # 513: of an old JPEG
MOST_COLORS = 4
MAX_TILE = 4096 * 4096  # pixels; GDAL's default is 256 x 256


@dataclass(frozen=True)
class Bands:
    """A file for a model that takes more channels than RGB."""

    data: bytes
    tags: Tags
    samples: Samples

    @property
    def memory(self) -> int:
        """How many times the memory of an RGB photo the bands take, as stored and as 8 bits."""
        sample_bytes = self.samples.channels * (_bits(self.tags) // 8 + 1)
        return -(-sample_bytes // 3)

    def decode(self) -> NDArray[np.uint8]:
        """Read all bands, upright: (H, W, C); raises what Pillow raises for broken data."""
        return bands.in_bytes(bands.read(self.data, self.tags), self.samples.range)


@dataclass(frozen=True)
class Tiff:
    """An opened file whose pixels are not yet read."""

    images: tuple[Image.Image, ...]  # the picture, or its planes as grey images
    data: bytes = field(default=b"", repr=False)  # of a picture that is not in planes
    negative: bool = False  # the planes are white-is-zero
    bands: Bands | None = None  # read instead of the image, which then only has the size

    @property
    def memory(self) -> int:
        """How many times the memory of an RGB photo decoding takes; 1 as a rule."""
        if self.bands is not None:
            return self.bands.memory
        return 2 if len(self.images) > 1 else 1  # planes are merged into a copy

    def decode(self, oriented: Callable[[Image.Image], Image.Image]) -> Image.Image:
        """Read and orient the pixels; planes are scaled to 8 bits and merged."""
        loaded = [depth.load(image, self._again) for image in self.images]
        turned = [oriented(image) for image in loaded]
        if len(turned) == 1 and not turned[0].mode.startswith("I;16"):
            return turned[0]
        colors, used = self._colors(), self._used_bits()
        planes = [
            eight_bits(each, used if number < colors else self._bits)
            for number, each in enumerate(turned)
        ]
        if self.negative:
            planes[0] = ~planes[0]
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(planes)]
        return Image.merge(mode, [Image.fromarray(plane) for plane in planes])

    def _again(self) -> Image.Image:
        return _opened(self.data, {})

    @property
    def _bits(self) -> int:
        """The bits of a sample in the file."""
        return _bits(getattr(self.images[0], "tag_v2", {}))

    def _colors(self) -> int:
        """Return the number of planes without alpha."""
        return len(self.images) - (len(self.images) in {2, 4})

    def _used_bits(self) -> int:
        """Return the bits that the colours use; all of them in a white-is-zero file."""
        if self._bits != 16 or self.negative:
            return self._bits
        planes = self.images[: self._colors()]
        return depth.used_bits(max(int(np.max(np.asarray(plane))) for plane in planes))


def open_tiff(data: bytes, samples: Samples = PHOTO) -> Tiff:
    """Read the header for a model that takes `samples`.

    Raises InvalidImage for samples without a known range or meaning, or of another number.
    """
    tags = _tags(data)
    _check_tile(tags)
    _check_scans(data, tags)
    _check_alike(tags)
    with refusals():
        if samples.channels == PHOTO.channels:
            return _picture(data, tags)
        return _bands(data, tags, samples)


def _picture(data: bytes, tags: Tags) -> Tiff:
    bits, samples, meaning = _bits(tags), _samples(tags), _one(tags, PHOTOMETRIC, -1)
    if _one(tags, FORMAT, UNSIGNED) not in {UNSIGNED, UNDEFINED} or bits > 16:
        raise InvalidImage(f"{_described(tags)} has an unknown value range: {_cure(tags)}")
    if bands.colors(tags) > PHOTO.channels:
        raise InvalidImage(
            f"{_described(tags)} has {samples} bands, and the model takes the 3 of RGB: "
            f"{_cure(tags)}"
        )
    several = meaning == BLACK_IS_ZERO and samples > 1
    planes = _one(tags, PLANAR, 1) == IN_PLANES and (bits > 8 or several)
    if planes or bits == 12 or (bits == 16 and meaning == WHITE_IS_ZERO):
        shown = _shown(tags) if planes or samples == 1 else []
        images = tuple(_opened(tiff.plane(data, tags, number), tags) for number in shown)
        if not images:
            raise InvalidImage(f"{_described(tags)} cannot be read: {_cure(tags)}")
        return Tiff(images, negative=meaning == WHITE_IS_ZERO)
    if several and 3 <= samples <= MOST_SAMPLES[bits > 8]:
        data = _said_to_be_rgb(data, tags)
    elif samples > MOST_SAMPLES[bits > 8]:
        raise InvalidImage(f"{_described(tags)} cannot be read: {_cure(tags)}")
    return Tiff((_opened(data, tags),), data)


def _bands(data: bytes, tags: Tags, samples: Samples) -> Tiff:
    """Open a file of exactly the bands that a model takes; an alpha channel counts as one."""
    if wrong := bands.fitting(samples, _samples(tags)) or bands.problem(tags):
        raise InvalidImage(f"{_described(tags)} cannot be read: {wrong}")
    outline = tiff.outline(data, tags)
    return Tiff((_opened(outline, tags),), bands=Bands(data, tags, samples))


def eight_bits(image: Image.Image, bits: int) -> NDArray[np.uint8]:
    """Return grey pixels (H, W) as 8 bits: the highest 8 of the `bits` used."""
    pixels = np.asarray(image)
    return depth.eight_bits(pixels, bits) if image.mode.startswith("I;16") else pixels


def _tags(data: bytes) -> Tags:
    """Parse the first directory."""
    check_tags(data)
    try:
        return tiff.directory(data)
    except Exception as error:  # parsers of hostile files fail in many ways
        raise InvalidImage(f"the image's header is broken: {error}") from None


def _check_tile(tags: Tags) -> None:
    """Raise InvalidImage for tiles far larger than the image: each is decoded as a whole.

    Strips need no check: libtiff cuts their rows to the height of the image.
    """
    width, height = _one(tags, TILE_WIDTH, 0), _one(tags, TILE_HEIGHT, 0)
    pixels = _one(tags, WIDTH, 0) * _one(tags, HEIGHT, 0)
    # Of many interleaved bands a tile has as many bytes as a larger one of a picture.
    several = max(1, _samples(tags) // MOST_COLORS) if _one(tags, PLANAR, 1) != IN_PLANES else 1
    if several * width * height > max(MAX_TILE, 4 * several * pixels):
        raise InvalidImage(
            f"the TIFF has tiles of {width} x {height} pixels for an image of {pixels} pixels: "
            "use smaller tiles"
        )


def _check_alike(tags: Tags) -> None:
    """Raise InvalidImage if the samples have different sizes or formats."""
    for number, what in ((BITS, "bits"), (FORMAT, "sample formats")):
        values = tags.get(number)
        if isinstance(values, tuple) and len(set(values)) > 1:
            shown = ", ".join(map(str, values))
            raise InvalidImage(
                f"a TIFF of {_samples(tags)} samples with different {what}, {shown}, cannot be "
                "read: save every sample as 8 bits, unsigned"
            )


def _check_scans(data: bytes, tags: Tags) -> None:
    """Raise InvalidImage for JPEG strips or tiles of too many scans, or that overlap."""
    if _one(tags, COMPRESSION, 1) not in JPEG_COMPRESSIONS:
        return
    parts = [
        part for pair in PARTS for part in zip(*(_all(tags, tag) for tag in pair), strict=False)
    ]
    if sum(length for _, length in parts) > 2 * len(data):
        raise InvalidImage("the strips of the TIFF overlap: write the file again")
    for start, length in parts:
        scans.count(data[start : start + length])


def _all(tags: Tags, number: int) -> tuple[int, ...]:
    value = tags.get(number, ())
    try:
        return tuple(map(int, value if isinstance(value, tuple) else (value,)))
    except (ValueError, TypeError):  # a wrong type
        return ()


def _bits(tags: Tags) -> int:
    return _one(tags, BITS, 1)


def _samples(tags: Tags) -> int:
    return _one(tags, SAMPLES, 1)


def _extras(tags: Tags) -> tuple[int, ...]:
    """Return the meaning of the samples after the colours."""
    value = tags.get(EXTRA, ())
    return value if isinstance(value, tuple) else (value,)


def _described(tags: Tags) -> str:
    meaning = _one(tags, PHOTOMETRIC, -1)
    number = _one(tags, FORMAT, UNSIGNED)
    kind = FORMATS.get(number, "unsigned")
    return (
        f"a TIFF of {_samples(tags)} x {_bits(tags)} bits, {kind}, "
        f"{MEANINGS.get(meaning, f'photometric interpretation {meaning}')},"
    )


def _cure(tags: Tags) -> str:
    """Return what to send instead, naming only bands that the file has."""
    bands = {1: "", 2: "-b 1 ", 3: ""}.get(_samples(tags), "-b 1 -b 2 -b 3 ")
    return f"send 8 or 16 bits of grey or RGB: `gdal_translate -ot Byte -scale {bands}IN OUT`"


def _opened(data: bytes, tags: Tags) -> Image.Image:
    try:
        return TiffImageFile(io.BytesIO(data))  # `Image.open` has a pixel limit, see imaging.py
    except (SyntaxError, IndexError, TypeError, struct.error):
        raise InvalidImage(f"{_described(tags)} cannot be read: {_cure(tags)}") from None
    except Exception as error:  # as above
        raise InvalidImage(f"the image's header is broken: {error}") from None


def _shown(tags: Tags) -> list[int]:
    """Return the planes to show: grey or RGB, and alpha if there is one."""
    meaning, samples, extras = _one(tags, PHOTOMETRIC, -1), _samples(tags), _extras(tags)
    # Three or more bands that are declared as grey: the first three are red, green and blue.
    colors = 3 if meaning == RGB or (meaning == BLACK_IS_ZERO and samples >= 3) else 1
    if samples < colors or meaning not in {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB}:
        raise InvalidImage(f"{_described(tags)} in planes cannot be read: {_cure(tags)}")
    first_extra = samples - len(extras)
    alphas = [
        first_extra + at
        for at, kind in enumerate(extras)
        if kind == ALPHA and colors <= first_extra + at < samples
    ]
    return [*range(colors), *alphas[:1]]


def _said_to_be_rgb(data: bytes, tags: Tags) -> bytes:
    """Return the file with its three or more grey bands declared as RGB and extra samples."""
    own = {tag: value for tag, value in tags.items() if tag in {*COPIED, *KEPT}}
    own[PHOTOMETRIC] = RGB
    own[BITS] = (_bits(tags),) * _samples(tags)
    if extras := _extras(tags)[-(_samples(tags) - 3) :] if _samples(tags) > 3 else ():
        own[EXTRA] = extras
    return tiff.with_directory(data, own)
