"""Encode maps and pictures: PNG, JPEG, run lengths, .npz and ZIP; blend classes into a photo."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from postprocess.errors import TooLarge
from postprocess.results import jpeg_strips, png, threads
from postprocess.results.facts import Color
from postprocess.results.photo import Photo
from postprocess.results.png import Pixels, Rows
from postprocess.runs import Spread

EPOCH = (1980, 1, 1, 0, 0, 0)  # date in ZIP files: the same outputs give the same bytes
# Formats of pictures: media type and suffix.
Format = Literal["jpeg", "png", "webp", "avif"]
FORMATS: dict[Format, tuple[str, str]] = {
    "jpeg": ("image/jpeg", "jpg"),
    "png": ("image/png", "png"),
    "webp": ("image/webp", "webp"),
    "avif": ("image/avif", "avif"),
}
ALWAYS = ("jpeg", "png")  # Pillow may be built without the others
# The limits of libjpeg (JPEG_MAX_DIMENSION), libwebp (WEBP_MAX_DIMENSION) and libavif
# (AVIF_DEFAULT_IMAGE_DIMENSION_LIMIT).
LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383, "avif": 32_768}
# Quality is of 100. Transparency is lossless in all of them.
SETTINGS: dict[Format, dict[str, Any]] = {
    "jpeg": {"quality": 90},
    "webp": {"quality": 90, "method": 2},
    "avif": {"quality": 80, "speed": 8},
}
LOSSLESS_ALPHA: dict[str, Any] = {
    "advanced": {"alpha:lossless": "1"}
}  # else it gets quality 80 too
STRIP = 64  # rows of a picture that are worked on at once


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

    `contour`: width in pixels of a solid line along the inner edge of each region. `spare`: the
    photo's picture may be overwritten.
    """
    # A picture that was kept belongs to the caller; one that was decoded here does not.
    blended = photo.whole if spare and photo.picture is None else photo.whole.copy()
    visible = np.zeros(256, np.bool_)
    visible[list(shown)] = True
    inks = _inks(palette, visible, alpha)

    def blend(top: int) -> None:
        strip = _visible_strip(labels, visible, top)
        if strip is None:
            return
        colors = inks[strip.rows][strip.repeated].view(np.uint8).reshape(*strip.shape, 4)
        if contour:
            solid = strip.edges(labels, contour) & visible[strip.rows][strip.repeated]
            np.copyto(colors[..., 3], 255, where=solid)
        # Pillow uses the memory of such a buffer, and pastes RGBA on RGB without converting it.
        paint = Image.frombuffer("RGBA", strip.shape[::-1], colors, "raw", "RGBA", 0, 1)
        blended.paste(paint, strip.corner, paint)

    threads.share(blend, range(0, labels.height, STRIP), blended.width * blended.height)
    return blended


def _inks(
    palette: tuple[Color, ...], visible: NDArray[np.bool_], alpha: float
) -> NDArray[np.uint32]:
    """Return each label's red, green, blue and opacity in four bytes, to look up all at once."""
    opacity = visible * np.uint8(round(255 * alpha))
    inks: NDArray[np.uint32] = np.column_stack([full_palette(palette), opacity]).view(np.uint32)
    return inks[:, 0]


@dataclass(frozen=True)
class _Strip:
    """Some rows of a map, without the columns at both ends that have no visible class."""

    rows: Pixels  # (R, W) the different ones
    repeated: NDArray[np.intp]  # for each row of the strip the index of the different one
    corner: tuple[int, int]  # (x, y) of the top left

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.repeated), self.rows.shape[1]

    def edges(self, labels: Rows, width: int) -> NDArray[np.bool_]:
        """Return the pixels less than `width` away from another class, in the whole map."""
        (left, top), (height, across) = self.corner, self.shape
        above = min(width, top)
        found = edges(labels.between(top - above, top + height + width), width)
        return found[above : above + height, left : left + across]


def _visible_strip(labels: Rows, visible: NDArray[np.bool_], top: int) -> _Strip | None:
    """Return the part of a strip with visible classes; None if it has none.

    Strips stay in the processor's cache, and most photos have large parts without any class.
    """
    rows, repeated = labels.stretch(top, top + STRIP)
    columns = np.flatnonzero(visible[rows].any(axis=0))
    if not len(columns):
        return None
    left, right = int(columns[0]), int(columns[-1]) + 1
    return _Strip(rows[:, left:right], repeated, (left, top))


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
    """Encode as JPEG of good quality; raises TooLarge beyond a JPEG's maximum size."""
    return picture(image, "jpeg")


def picture(image: Image.Image, kind: Format) -> bytes:
    """Encode an RGB or RGBA picture; raises TooLarge beyond the format's maximum size."""
    if kind == "png":
        return lossless(image)
    if max(image.size) > LONGEST_SIDE[kind]:
        raise TooLarge(
            f"{image.width} x {image.height} pixels: a side in {kind.upper()} has at most "
            f"{LONGEST_SIDE[kind]}; use overlay_format=png, or max_side"
        )
    if kind == "jpeg":
        return jpeg_strips.encode(image, SETTINGS[kind])
    try:
        alpha = LOSSLESS_ALPHA if kind == "avif" and image.mode == "RGBA" else {}
        return _encoded(image, kind.upper(), **SETTINGS[kind], **alpha)
    except RuntimeError as error:  # the AVIF encoder's, mostly for want of memory
        raise TooLarge(
            f"{image.width} x {image.height} pixels cannot be encoded as {kind.upper()} here "
            f"({error}): use max_side, or overlay_format=jpeg"
        ) from None


@cache
def writable() -> tuple[Format, ...]:
    """Return the formats that the installed Pillow can write."""
    return tuple(kind for kind in FORMATS if kind in ALWAYS or _can_write(kind))


def _can_write(kind: Format) -> bool:
    """Return whether Pillow has the encoder: one without may still have the decoder."""
    try:
        picture(Image.new("RGBA", (8, 8)), kind)
    except (OSError, KeyError, ValueError):
        return False
    return True


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
