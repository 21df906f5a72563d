"""Is a data set fit for training? Every image and mask is read once, some at a time.

What makes a training a waste is in the verdict: broken pairs, ids that are no
class, masks of colours, classes that no pixel has. `convert` turns masks of
colours into class ids where the palette is known.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from model.data import palettes
from model.data.pairs import (
    MASK_MODES,
    VOID,
    CodedMask,
    Dataset,
    DatasetError,
    Mask,
    Pair,
    meanings,
    read_mask,
    write_mask,
)
from model.data.palettes import Palette
from model.data.photo import open_photo, opened

SHOWN = 20  # problems printed one by one; JSON holds them all
COLOR_MODES = ("RGB", "RGBA")
EXIF_ORIENTATION = 0x0112
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Look:
    """What one pair shows: its mask's values counted, (256,), or its colours."""

    mode: str = ""
    values: NDArray[np.int64] | None = None
    colors: Counter[int] = field(default_factory=Counter)
    # (value, packed colour) of the values that a palette mask uses.
    shades: frozenset[tuple[int, int]] = frozenset()
    problem: str = ""


@dataclass
class Report:
    """What `check` saw; `pixels` and `images` count by class, (K,) int64."""

    dataset: Dataset
    modes: Counter[str] = field(default_factory=Counter)
    values: Counter[int] = field(default_factory=Counter)  # pixels by mask value
    pixels: NDArray[np.int64] = field(init=False)
    images: NDArray[np.int64] = field(init=False)
    void: int = 0
    empty: int = 0  # masks that are void everywhere
    stray: set[int] = field(default_factory=set)  # values that mean nothing
    colored: int = 0
    colors: Counter[int] = field(default_factory=Counter)
    shades: set[tuple[int, int]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.dataset.classes), np.int64)
        self.images = np.zeros(len(self.dataset.classes), np.int64)

    @property
    def usable(self) -> bool:
        """Whether every pair can be read and some pixel has a class."""
        return not self.verdict()

    def add(self, pair: Pair, look: Look) -> None:
        """Count what one pair shows."""
        if look.mode:
            self.modes[look.mode] += 1
        if look.problem:
            self.problems.append(f"{pair.name}: {look.problem}")
        elif look.values is None:
            self.colored += 1
            self.colors.update(look.colors)
        else:
            self._count(meanings(self.dataset, pair.mask), look.values)
            self.shades |= look.shades

    def _count(self, meaning: dict[int, int], values: NDArray[np.int64]) -> None:
        counts = np.zeros(VOID + 1, np.int64)
        for value in np.flatnonzero(values).tolist():
            self.values[value] += int(values[value])
            if value not in meaning:
                self.stray.add(value)
            counts[meaning.get(value, VOID)] += values[value]
        classes = counts[: len(self.pixels)]
        self.pixels += classes
        self.images += classes > 0
        self.void += int(counts[VOID])
        self.empty += not classes.any()

    def palette(self) -> Palette:
        """Return the palette by which masks of colours are read."""
        return palettes.choose(self.dataset, self.colors)

    def renumbered(self) -> bool:
        """Whether the colours in palette masks belong to other classes than their values do.

        That is what is left when a program stores a picture of the colours as a palette PNG:
        the right colours at values in any order.
        """
        used = Counter(color for _, color in self.shades)
        if len(used) < 2 or not self.dataset.own_palette:
            return False
        palette = palettes.choose(self.dataset, used, gray=False)
        meaning = meanings(self.dataset, Path())
        return not palette.unknown(used) and any(
            palette.ids[color] != meaning.get(value, VOID) for value, color in self.shades
        )

    def verdict(self) -> str:
        """Why a training would be wasted; empty when it would not."""
        reasons = []
        if self.problems:
            reasons.append(f"{len(self.problems)} of {len(self.dataset.pairs)} pairs are broken")
        if self.colored:
            reasons.append(self._on_colors())
        if self.renumbered():
            reasons.append(
                "palette masks have the colour of one class at the value of another: "
                "a program renumbered them, --convert OUT goes by the colours"
            )
        if self.stray:
            reasons.append(f"masks hold ids that are no class: {sorted(self.stray)}{self._hint()}")
        if not self.pixels.any() and not self.colored:
            reasons.append("no pixel has a class")
        return "; ".join(reasons)

    def _on_colors(self) -> str:
        modes = " or ".join(mode for mode in COLOR_MODES if self.modes[mode])
        unknown = self.palette().unknown(self.colors)
        start = f"{self.colored} masks hold colours (mode {modes}) instead of class ids, "
        if not unknown:
            return f"{start}all of palette {self.palette().name}: --convert OUT writes the ids"
        return (
            f"{start}and {len(unknown)} colours are not in palette {self.palette().name}: "
            + palettes.named(unknown)
        )

    def _hint(self) -> str:
        own = self.dataset.name == "folder"
        return " (say which values mean classes by `values` in dataset.toml)" if own else ""

    def warnings(self) -> list[str]:
        """What is odd, yet no reason not to train."""
        absent = [name for name, n in zip(self.dataset.classes, self.pixels, strict=True) if not n]
        lines = [*self.dataset.notes]
        if absent and self.pixels.any():
            lines.append(f"no pixel of {', '.join(absent)}")
            if self.void and self.dataset.name == "folder":
                lines[-1] += (
                    "; is the value of void really a class? then give `values` in dataset.toml"
                )
        if self.empty:
            lines.append(f"{self.empty} masks are void everywhere: nothing is learned from them")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; shares are of all mask pixels."""
        total = int(self.pixels.sum()) + self.void
        unknown = self.palette().unknown(self.colors)
        return {
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "pairs": len(self.dataset.pairs),
            "modes": dict(self.modes),
            "values": {str(value): n for value, n in sorted(self.values.items())},
            "void_share": self.void / total if total else None,
            "classes": {
                name: {"share": int(self.pixels[i]) / max(1, total), "images": int(self.images[i])}
                for i, name in enumerate(self.dataset.classes)
            },
            "stray_ids": sorted(self.stray),
            "color_masks": self.colored,
            "palette": self.palette().name if self.colored else None,
            "unknown_colors": [
                {"color": palettes.unpack(color), "pixels": n} for color, n in unknown.most_common()
            ],
            "problems": self.problems,
            "warnings": self.warnings(),
            "verdict": self.verdict() or "usable",
        }

    def to_text(self) -> str:
        """Return the report for reading."""
        report = self.to_json()
        void = report["void_share"]
        modes = ", ".join(f"{n} {mode}" for mode, n in self.modes.most_common()) or "none read"
        lines = [
            f"{report['dataset']} {report['split']}: {report['pairs']} pairs, masks: {modes}",
            f"  mask values: {', '.join(report['values']) or 'none'}",
        ]
        lines += [
            f"  {name:<16} {row['share']:7.2%} of pixels, {row['images']} images"
            for name, row in report["classes"].items()
        ]
        lines += [] if void is None else [f"  {'void':<16} {void:7.2%} of pixels"]
        lines += [f"broken: {problem}" for problem in self.problems[:SHOWN]]
        hidden = len(self.problems) - SHOWN
        lines += [f"... and {hidden} more; --json lists them all"] if hidden > 0 else []
        lines += [f"warning: {warning}" for warning in report["warnings"]]
        return "\n".join([*lines, f"verdict: {report['verdict']}"])


def check(dataset: Dataset) -> Report:
    """Read every pair of `dataset`; what cannot be used is reported, never raised."""
    report = Report(dataset)
    with warnings.catch_warnings():
        # open_photo silences Pillow on damaged EXIF; filters are shared by all threads.
        warnings.simplefilter("ignore", UserWarning)
        for pair, look in zip(dataset.pairs, each(look_at, dataset.pairs, "pair"), strict=True):
            report.add(pair, look)
    return report


def each(work: Callable[[T], R], items: Sequence[T], unit: str) -> Iterator[R]:
    """Results of `work` in order, from threads (Pillow decodes outside Python's lock)."""
    todo = iter(items)
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(items), unit=unit, disable=not sys.stderr.isatty()) as bar,
    ):
        while chunk := list(islice(todo, 256)):  # so that no million tasks wait in a queue
            for result in pool.map(work, chunk):
                bar.update()
                yield result


def look_at(pair: Pair) -> Look:
    """Read one pair whole."""
    try:
        _expect_files(pair)
        with opened(_path(pair.mask)) as picture:
            look = _look_at_mask(picture)
            mask_size = picture.size
        if not look.problem:
            _expect_size(pair.image, mask_size)
    except (DatasetError, OSError) as error:
        return Look(problem=str(error))
    return look


def _path(mask: Mask) -> Path:
    return mask.path if isinstance(mask, CodedMask) else mask


def _expect_files(pair: Pair) -> None:
    for path in (pair.image, _path(pair.mask)):
        if path.is_file():
            continue
        others = sorted(p.name for p in path.parent.glob(f"{path.stem}.*"))
        hint = f"; {others[0]} is there: masks are PNG, lossless" if others else ""
        raise DatasetError(f"{path} is missing" + (hint if path == _path(pair.mask) else ""))


def _look_at_mask(picture: Image.Image) -> Look:
    mode = picture.mode
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


def _expect_size(image: Path, mask_size: tuple[int, int]) -> None:
    size = open_photo(image).size
    if size == mask_size:
        return
    text = f"image is {size} pixels, mask {mask_size} (width, height)"
    with opened(image) as picture:
        if picture.size == mask_size and picture.getexif().get(EXIF_ORIENTATION, 1) != 1:
            text += ": the photo's EXIF orientation turns it, turn the mask as well"
    raise DatasetError(text)


def convert(report: Report, out: Path) -> Dataset:
    """Write every mask as class ids into `out`, void as 255; returns the set with these masks.

    Masks with a colour that is not known, and broken ones, are left out.
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
