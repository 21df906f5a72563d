"""Check whether a data set is fit for training; reads every image and mask once.

`check` reads and reports. `convert` turns masks of colours into class ids if the
palette is known.
"""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from model.data import palettes
from model.data.pairs import (
    LOSSY,
    LOSSY_MASK,
    MASK_MODES,
    VOID,
    CodedMask,
    Dataset,
    DatasetError,
    Mask,
    Pair,
    read_mask,
    write_mask,
)
from model.data.palettes import Palette
from model.data.photo import Picture, open_picture, opened, turn
from model.data.report import COLOR_MODES, Look, Report
from pixels.bands import PHOTO, Bands, Samples
from pixels.exif import TURNS

CLEARLY = 1.3  # times as much contrast: a mask of little structure fits both ways about as well
T = TypeVar("T")
R = TypeVar("R")


def check(dataset: Dataset) -> Report:
    """Read every pair of `dataset`; problems are reported, never raised."""
    report = Report(dataset)
    with warnings.catch_warnings():
        # open_photo silences Pillow on damaged EXIF; filters are shared by all threads.
        warnings.simplefilter("ignore", UserWarning)
        look_at_each = partial(look_at, samples=dataset.samples)
        looks = each(look_at_each, dataset.pairs, "pair")
        for pair, look in zip(dataset.pairs, looks, strict=True):
            report.add(pair, look)
    return report


def each(work: Callable[[T], R], items: Sequence[T], unit: str) -> Iterator[R]:
    """Results of `work` in order, from threads (Pillow decodes outside Python's lock)."""
    todo = iter(items)
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(items), unit=unit, disable=not sys.stderr.isatty()) as bar,
    ):
        # In parts, so that the queue does not fill with a million tasks.
        while chunk := list(islice(todo, 256)):
            for result in pool.map(work, chunk):
                bar.update()
                yield result


def look_at(pair: Pair, samples: Samples = PHOTO) -> Look:
    """Read one pair whole."""
    try:
        _expect_files(pair)
        with opened(_path(pair.mask)) as picture:
            look = _look_at_mask(picture)
            mask_size = picture.size
        if not look.problem:
            photo = _expect_size(pair.image, mask_size, samples)
            look = replace(look, size=photo.size)
            if isinstance(photo, Image.Image):
                look = replace(look, turned=_drawn_as_stored(pair, photo))
            else:
                look = replace(look, moments=_moments(photo))
    except (DatasetError, OSError) as error:
        return Look(problem=str(error))
    return look


def look_at_mask(pair: Pair) -> Look:
    """Read the mask of a pair, and not its photo."""
    try:
        with opened(_path(pair.mask)) as picture:
            return _look_at_mask(picture)
    except OSError as error:
        return Look(problem=str(error))


def _path(mask: Mask) -> Path:
    return mask.path if isinstance(mask, CodedMask) else mask


def _expect_files(pair: Pair) -> None:
    for path in (pair.image, _path(pair.mask)):
        if path.is_file():
            continue
        raise DatasetError(f"{path} is missing" + (_hint(pair) if path != pair.image else ""))


def _hint(pair: Pair) -> str:
    """Name a file that is probably the missing mask, and what to do."""
    mask, stem = _path(pair.mask), pair.image.stem
    files = sorted(mask.parent.glob(f"{glob.escape(stem)}*")) if mask.parent.is_dir() else []
    endings = {p.name: p.name.removeprefix(stem) for p in files if p != pair.image}
    for name, ending in endings.items():
        if ending.endswith(".png") and not ending[:1].isalnum():  # of `1`, but not of `10.png`
            return f"; {name} is there: then give `mask_suffix = {ending!r}` in dataset.toml"
    other = next((name for name, ending in endings.items() if ending[:1] == "."), "")
    return f"; {other} is there: masks are PNG, lossless" if other else ""


def _look_at_mask(picture: Image.Image) -> Look:
    mode = picture.mode
    if picture.format in LOSSY:
        return Look(mode, problem=f"the mask is {LOSSY_MASK.format(picture.format)}")
    if mode in COLOR_MODES:
        return Look(mode, colors=palettes.count(palettes.packed_pixels(picture)))
    if mode not in MASK_MODES:
        return Look(mode, problem=f"the mask has mode {mode}; save it as 8-bit gray or palette")
    ids = np.asarray(picture).astype(np.uint8, copy=False)
    values = np.bincount(ids.ravel(), minlength=256)
    return Look(mode, values, shades=_shades(picture, np.flatnonzero(values).tolist()))


def _shades(picture: Image.Image, values: list[int]) -> frozenset[tuple[int, int]]:
    if picture.mode != "P":
        return frozenset()
    table = np.zeros((256, 3), np.uint8)
    colors = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    table[: len(colors)] = colors
    return frozenset(
        (value, palettes.pack((int(r), int(g), int(b))))
        for value, (r, g, b) in zip(values, table[values], strict=True)
    )


def _moments(photo: Bands) -> NDArray[np.float64]:
    """Number, sum and sum of squares of each channel, (3, C)."""
    pixels = photo.pixels.reshape(-1, photo.pixels.shape[2]).astype(np.float64)
    return np.stack([np.full(pixels.shape[1], len(pixels)), pixels.sum(0), (pixels**2).sum(0)])


def _expect_size(image: Path, mask_size: tuple[int, int], samples: Samples) -> Picture:
    """The photo; raises DatasetError where its mask has another size."""
    photo = open_picture(image, samples)
    size = photo.size
    if size == mask_size:
        return photo
    text = f"image is {size} pixels, mask {mask_size} (width, height)"
    if not isinstance(photo, Image.Image):
        raise DatasetError(text)
    with opened(image) as picture:
        if picture.size == mask_size and turn(picture) != 1:
            text += ": the photo's EXIF orientation turns it, turn the mask as well"
    raise DatasetError(text)


def _drawn_as_stored(pair: Pair, photo: Image.Image) -> bool:
    """Whether a mask fits a photo better as the file stores it than as its EXIF data turns it.

    At orientation 3 (upside down) the sizes agree and do not tell. Edges do: the photo's
    brightness changes more along the borders of a mask that fits than along those of one
    that is turned.
    """
    with opened(pair.image) as stored:
        orientation = turn(stored)
    if orientation not in TURNS:
        return False
    with opened(_path(pair.mask)) as picture:
        mask = picture.convert("RGB") if picture.mode in COLOR_MODES else picture.convert("L")
        turned = mask.transpose(TURNS[orientation])
    if turned.size != mask.size:
        return False
    gray = np.asarray(photo.convert("L")).astype(np.int16)
    fits = [_contrast(gray, np.asarray(each)) for each in (mask, turned)]
    return fits[1] > CLEARLY * fits[0]


def _contrast(gray: NDArray[np.int16], mask: NDArray[np.uint8]) -> float:
    """Mean change of brightness (H, W) where a mask (H, W) or (H, W, 3) changes."""
    changes = []
    for axis in (0, 1):
        border = np.diff(mask.astype(np.int16), axis=axis) != 0
        border = border.any(2) if border.ndim == 3 else border
        changes.append(np.abs(np.diff(gray, axis=axis))[border])
    found = np.concatenate(changes)
    return float(found.mean()) if len(found) else 0.0


def convert(report: Report, out: Path) -> Dataset:
    """Write every mask as class ids into `out`, void as 255; returns the set with these masks.

    Broken masks, and masks with an unknown colour, are left out.
    """
    dataset, palette = report.dataset, report.palette()
    if report.renumbered():
        used = Counter(color for _, color in report.shades)
        palette = palettes.choose(dataset, used, gray=False)
    out.mkdir(parents=True, exist_ok=True)

    def write(pair: Pair) -> Pair:
        target = out / f"{pair.name}.png"
        with_ids = replace(pair, mask=target)
        try:
            ids = _class_ids(dataset, pair.mask, palette, by_color=report.renumbered())
        except (DatasetError, OSError, KeyError):  # the report says why
            target.unlink(missing_ok=True)  # what an earlier run made of another mask
            return with_ids
        write_mask(target, ids, dataset.palette)
        return with_ids

    return replace(
        dataset, pairs=tuple(each(write, dataset.pairs, "mask")), void=VOID, own_palette=True
    )


def _class_ids(
    dataset: Dataset, mask: Mask, palette: Palette, *, by_color: bool
) -> NDArray[np.uint8]:
    with opened(_path(mask)) as picture:
        if picture.mode in COLOR_MODES or (by_color and picture.mode == "P"):
            return palettes.to_ids(palettes.packed_pixels(picture), palette)
    return read_mask(mask, classes=len(dataset.classes), void=dataset.void)
