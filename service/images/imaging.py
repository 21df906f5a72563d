"""Decode photos, fit them into the model's input, and encode the results.

Everything here runs in a worker thread. The sender is not trusted: format and size are
checked in the header before a pixel is decoded.
"""

from __future__ import annotations

import base64
import io
import struct
import zipfile
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pycocotools import mask as coco

from pixels.srgb import to_srgb
from postprocess.runs import Spread
from service.errors import ImageTooLarge, InvalidImage
from service.images import heif, png, scans, tags
from service.images.chunks import readable
from service.images.png import Pixels, Rows
from service.images.tiff import Tiff, is_tiff, open_tiff
from service.inference.contract import Color, InputSize

# Called directly: `Image.open` also applies Pillow's own pixel limit, a global that other code
# in the process may rely on.
READERS = {
    "JPEG": jpeg_factory,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
}
FORMATS = (*READERS, "TIFF", "AVIF", "HEIC")
JPEGS = ("JPEG", "MPO")
END_OF_JPEG = b"\xff\xd9"
FILLER = bytes([0xAA, 0x55, 0x33, 0xCC]) * 16  # contains no JPEG marker
MEDIA_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff"),
    *heif.MEDIA_TYPES,
)
MAX_RLE_BYTES = 2_000_000  # of a BMP: Pillow decodes run lengths in Python
UNSCALED = ("I", "F")  # Pillow would clip them to 0 to 255, whatever their range is
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112  # the EXIF tag
EPOCH = (1980, 1, 1, 0, 0, 0)  # date in ZIP files: the same outputs give the same bytes
LONGEST_JPEG_SIDE = 65_500  # libjpeg's own limit, JPEG_MAX_DIMENSION
# A reduced JPEG needs this share of the wanted pixels per side. An eighth of 4000 is 500 pixels;
# if 513 are wanted, decoding a quarter instead would take 1.5 times as long.
ENOUGH = 0.95
BILINEAR = Image.Resampling.BILINEAR
STRIP = 64  # rows of a picture that are worked on at once


Picture = Image.Image | NDArray[np.uint8]  # sRGB


@dataclass(frozen=True)
class Photo:
    """What the outputs need of a photo."""

    size: tuple[int, int]  # (W, H), upright
    orientation: int = 1  # the applied value of the EXIF tag; 1: as stored
    picture: Picture | None = None  # at least of `size`, if it was requested
    decoded: Picture | None = None  # possibly smaller than `size`, if it was requested
    data: bytes = field(default=b"", repr=False)  # encoded, to decode a picture of `size` later

    @cached_property
    def whole(self) -> Image.Image:
        """The picture of `size`, decoded now if need be; raises ValueError if nothing was kept."""
        if self.picture is None and self.data:
            image = decode(_opened(self.data), reduce_to=max(self.size)).image
        else:
            image = _image(self.picture)
        return shrunk(image, self.size)

    @cached_property
    def image(self) -> Image.Image:
        """The picture as it was decoded; raises ValueError if it was not kept."""
        return _image(self.decoded)

    def limited(self, size: tuple[int, int]) -> Photo:
        """Return the photo at a smaller size (W, H)."""
        return replace(self, size=size)


def _image(picture: Picture | None) -> Image.Image:
    if picture is None:
        raise ValueError("the photo was decoded without keeping its picture")
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture at a size (W, H)."""
    return image if image.size == size else image.resize(size, BILINEAR, reducing_gap=2.0)


def limited(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Return a size (W, H) shrunk until no side is longer than `max_side`."""
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longest)) for side in size)
    return width, height


@dataclass(frozen=True)
class DecodedPhoto:
    """A decoded photo, upright as its EXIF data says."""

    image: Image.Image  # sRGB; possibly smaller than `size`
    size: tuple[int, int]  # (W, H) of the photo itself
    orientation: int = 1  # the applied value of the EXIF tag; 1: as stored

    @property
    def photo(self) -> Photo:
        """The photo with the decoded image, and with its picture if that is as large."""
        picture = self.image if self.image.size == self.size else None
        return Photo(self.size, self.orientation, picture, self.image)


@dataclass(frozen=True)
class Fitted:
    """A photo fitted into the model's input."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    valid: tuple[int, int]  # (h, w) of the photo's part, at the top left


@dataclass(frozen=True)
class Opened:
    """An encoded image whose header has been read."""

    data: bytes
    image: Image.Image  # not yet decoded
    profile: bytes | None  # ICC
    tiff: Tiff | None = None
    scans: int = 1  # of a JPEG

    @property
    def memory(self) -> int:
        """The pixels to reserve memory for: some formats need twice as much for each pixel."""
        several_planes = self.tiff and len(self.tiff.images) > 1
        heavy = self.image.format in {"WEBP", *heif.FORMATS} or several_planes
        return 2 * self.pixels if heavy else self.pixels

    @property
    def work(self) -> int:
        """How long decoding takes, in pixels of a JPEG of one scan; a rough estimate."""
        if self.image.format in JPEGS:  # a scan without data still visits every block
            return self.pixels * (20 + self.scans) // 20 + 2 * len(self.data)
        return (6 if self.image.format in heif.FORMATS else 3) * self.pixels

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) as stored."""
        return self.image.size

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return self.image.width * self.image.height


def open_checked(data: bytes, max_pixels: int) -> Opened:
    """Read and check the header only; raises InvalidImage or ImageTooLarge."""
    if not data:
        raise InvalidImage("the body is empty: send the bytes of an image")
    opened = _opened(data)
    if opened.image.mode in UNSCALED:
        raise InvalidImage("32-bit grey images have an unknown value range: send 8 or 16 bits")
    width, height = opened.size
    if opened.pixels > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {opened.pixels} pixels, "
            f"the limit is {max_pixels}: send a smaller image"
        )
    return opened


def _opened(data: bytes) -> Opened:
    if is_tiff(data):
        tiff = open_tiff(data)
        first = tiff.images[0]
        return Opened(data, first, first.info.get("icc_profile"), tiff)
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
    return Opened(data, image, profile or image.info.get("icc_profile"), scans=count)


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
    a quarter or an eighth of its size, see ENOUGH.
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
    orientation = _orientation(
        image
    )  # read it now: Pillow removes it from a TIFF when it turns the image
    turned = orientation in (5, 6, 7, 8)
    size = (image.height, image.width) if turned else image.size
    try:
        if opened.tiff is not None:
            oriented = opened.tiff.decode(_oriented)
            size = oriented.size  # Pillow turns TIFFs itself, when it opens or loads them
        else:
            if reduce_to is not None and max(size) > reduce_to:
                _reduce(image, reduce_to / max(size))
            image.load()
            oriented = _oriented(image)
        if image.format in heif.FORMATS and oriented.size != size:
            raise ValueError(f"it has {oriented.size} pixels, its header says {size}")
        return DecodedPhoto(to_srgb(oriented, opened.profile), size, orientation)
    except Exception as error:  # decoders of hostile files fail in many ways
        raise InvalidImage(f"the image is truncated or broken: {error}") from None


def _reduce(image: Image.Image, scale: float) -> None:
    """Let a JPEG be decoded at a fraction of its size, at least ENOUGH of `scale`."""
    width, height = (max(1, round(side * ENOUGH * scale)) for side in image.size)
    image.draft("RGB", (width, height))  # divides by these sides


def _ended(opened: Opened) -> Opened | None:
    """Return a JPEG that lacks only its end marker, with the marker; None for other files.

    After a complete scan, libjpeg skips bytes in front of the marker. In a truncated scan it
    decodes them as pixels, so that two different fillers give different pictures.
    """
    data = opened.data.removesuffix(b"\xff")
    if opened.image.format not in JPEGS or data.endswith(END_OF_JPEG):
        return None
    try:
        plain, odd = (_opened(data + more + END_OF_JPEG) for more in (b"", FILLER))
        if plain.image.tobytes() != odd.image.tobytes():
            return None
        return _opened(data + END_OF_JPEG)
    except Exception:  # the file has other errors
        return None


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        try:
            tags.check(exif.removeprefix(EXIF).removeprefix(EXIF))
        except InvalidImage:  # ignored as other broken EXIF data
            return 1
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # ignore broken EXIF data
        return 1
    return value if 1 <= value <= 8 else 1


def _oriented(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above
        return image


def fit(photo: DecodedPhoto, target: InputSize) -> Fitted:
    """Place a photo at the top left of the model's input, and shrink it if it is larger."""
    width, height = photo.size
    scale = min(1.0, target.width / width, target.height / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.empty((target.height, target.width, 3), np.uint8)
    pixels[:h, :w] = np.asarray(shrunk(photo.image, (w, h)))
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
    rows, columns = png.nearest(h, size[1]), png.nearest(w, size[0])
    return Spread(np.bincount(rows, minlength=h), np.bincount(columns, minlength=w))


def enlarged(values: NDArray[np.uint8], spread: Spread) -> Rows:
    """Repeat the rows and columns of a map (R, C) as `spread` says."""
    rows = Rows.of(values, spread.heights)
    if (spread.widths == 1).all():
        return rows
    return replace(rows, different=rows.different.repeat(spread.widths, axis=1))


def mask_png(labels: Rows, palette: tuple[Color, ...]) -> bytes:
    """An index PNG whose pixel values are the class ids, whatever ids occur."""
    return png.encode(labels, full_palette(palette))


def _repeats(rows: Rows) -> bool:
    """Return whether rows repeat at least twice on average, as in maps of large photos."""
    return bool(rows.counts.sum() >= 2 * len(rows.counts))


def _indexed(labels: NDArray[np.uint8], palette: tuple[Color, ...]) -> Image.Image:
    image = Image.fromarray(labels)
    # All 256 entries: with fewer, Pillow compacts the palette and renumbers the classes.
    image.putpalette(full_palette(palette).tobytes())
    return image


def full_palette(palette: tuple[Color, ...]) -> NDArray[np.uint8]:
    """Return the class colours, padded with greys: (256, 3) uint8."""
    full = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    full[: len(palette)] = palette
    return full


def color_png(labels: Rows, palette: tuple[Color, ...]) -> bytes:
    """An RGB PNG of the classes' colours."""
    if _repeats(labels):
        return png.encode(replace(labels, different=full_palette(palette)[labels.different]))
    return lossless(_indexed(labels.image, palette).convert("RGB"))


def grey_png(values: Rows) -> bytes:
    """A grey PNG of class ids as they are, or of probabilities times 255."""
    return png.encode(values) if _repeats(values) else lossless(Image.fromarray(values.image))


def overlay(
    photo: Photo,
    labels: Rows,
    palette: tuple[Color, ...],
    *,
    alpha: float,
    shown: Collection[int],
    contour: int = 0,
    spare: bool = False,
) -> Image.Image:
    """Blend the colours of the `shown` classes into the photo; leave the rest clear.

    `contour`: width in pixels of a solid line along the inner edge of each region. `spare`:
    nobody else needs the photo's picture.
    """
    # A picture that was kept belongs to the caller; one that was decoded here does not.
    blended = photo.whole if spare and photo.picture is None else photo.whole.copy()
    visible = np.zeros(256, np.bool_)
    visible[list(shown)] = True
    for strip in _visible_strips(labels, visible):
        colors = full_palette(palette)[strip.rows][strip.repeated]
        shows = visible[strip.rows]
        weights = (shows * np.uint8(round(255 * alpha)))[strip.repeated]
        if contour:
            weights[strip.edges(labels, contour) & shows[strip.repeated]] = 255
        blended.paste(Image.fromarray(colors), strip.corner, Image.fromarray(weights))
    return blended


@dataclass(frozen=True)
class _Strip:
    """Some rows of a map, without the columns at both ends that have no visible class."""

    rows: Pixels  # (R, W) the different ones
    repeated: NDArray[np.intp]  # for each row of the strip the index of the different one
    corner: tuple[int, int]  # (x, y) of the top left

    def edges(self, labels: Rows, width: int) -> NDArray[np.bool_]:
        """Return the pixels less than `width` away from another class, in the whole map."""
        (left, top), (height, across) = self.corner, (len(self.repeated), self.rows.shape[1])
        above = min(width, top)
        found = edges(labels.between(top - above, top + height + width), width)
        return found[above : above + height, left : left + across]


def _visible_strips(labels: Rows, visible: NDArray[np.bool_]) -> Iterator[_Strip]:
    """Yield the parts with visible classes, some rows at a time.

    Strips stay in the processor's cache, and most photos have large parts without any class.
    """
    for top in range(0, labels.height, STRIP):
        rows, repeated = labels.stretch(top, top + STRIP)
        columns = np.flatnonzero(visible[rows].any(axis=0))
        if len(columns):
            left, right = int(columns[0]), int(columns[-1]) + 1
            yield _Strip(rows[:, left:right], repeated, (left, top))


def edges(labels: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Return the pixels less than `width` pixels away from another class."""
    edge = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        near, far = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        turned = np.moveaxis(edge, axis, 0)  # a view
        turned[:-1] |= near != far
        turned[1:] |= near != far
    return _widened(edge, width - 1)


def _widened(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Grow every pixel of a mask to a square of 2 * `by` + 1 pixels."""
    grown = mask.copy()
    for axis in (0, 1):
        along = np.moveaxis(grown, axis, 0)  # a view
        reached = 0
        while reached < by:  # the reach doubles: the time grows with its logarithm
            step = min(reached + 1, by - reached)
            before = np.moveaxis(grown.copy(), axis, 0)
            along[step:] |= before[:-step]
            along[:-step] |= before[step:]
            reached += step
    return grown


def lossless(image: Image.Image) -> bytes:
    """Encode a grey, RGB or RGBA picture as PNG."""
    return png.encode_picture(np.asarray(image))


def jpeg(image: Image.Image) -> bytes:
    """Encode as JPEG of good quality; raises ImageTooLarge beyond a JPEG's maximum size."""
    if max(image.size) > LONGEST_JPEG_SIDE:
        raise ImageTooLarge(
            f"{image.width} x {image.height} pixels: a JPEG side has at most {LONGEST_JPEG_SIDE}; "
            "use overlay_format=png"
        )
    return _encoded(image, "JPEG", quality=90)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Save arrays by name in a compressed .npz file."""
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type] # NumPy's stub misreads **
    return out.getvalue()


def summary(
    labels: NDArray[np.uint8],
    classes: tuple[str, ...],
    *,
    shown: Container[int] | None = None,
    confidence: NDArray[np.uint8] | None = None,
) -> list[dict[str, Any]]:
    """The classes present: id, name, pixels, fraction and box [x0, y0, x1, y1) in pixels.

    With a confidence map also its mean, 0 to 1. `shown`: only classes of these ids.
    """
    counts = Image.fromarray(labels).histogram()  # np.bincount would convert every pixel to int64
    found = []
    for label in map(int, np.flatnonzero(counts)):
        if shown is not None and label not in shown:
            continue
        where = labels == label
        columns, rows = np.flatnonzero(where.any(axis=0)), np.flatnonzero(where.any(axis=1))
        entry = {
            "id": label,
            "name": classes[label],
            "pixels": counts[label],
            "fraction": round(counts[label] / labels.size, 6),
            "box": [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1],
        }
        if confidence is not None:
            entry["confidence"] = round(float(confidence[where].mean()) / 255, 4)
        found.append(entry)
    return found


def rle(labels: NDArray[np.uint8], label: int) -> dict[str, Any]:
    """One class as COCO's compressed run lengths, as `pycocotools.mask.decode` takes them.

    Fastest if `labels` are in Fortran order, like COCO's runs.
    """
    runs = coco.encode(np.asfortranarray(labels == label))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def compressed(run_lengths: list[int], size: tuple[int, int]) -> dict[str, Any]:
    """Compress COCO's run lengths of a mask of `size` (W, H), as `rle` gives them."""
    sides = [size[1], size[0]]
    runs = coco.frPyObjects({"size": sides, "counts": run_lengths}, *sides)
    return {"size": sides, "counts": runs["counts"].decode("ascii")}


def archive(files: dict[str, bytes]) -> bytes:
    """Return a ZIP of several files, stored: they are already compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name, data in files.items():
            target.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return out.getvalue()


def as_text(data: bytes) -> str:
    """Encode as base64, for images inside JSON."""
    return base64.b64encode(data).decode("ascii")
