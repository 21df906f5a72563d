"""Report the result of checking a data set, as text and as plain values.

The verdict names what would make a training useless: broken pairs, ids that are no
class, masks of colours, no pixel with a class, or a single class. Lesser oddities are
warnings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data import palettes
from model.data.pairs import VOID, Dataset, Pair, meanings
from model.data.palettes import Palette

VALUES_SHOWN = 10  # stray values named in a line
MANY = 8  # different stray values
BORDERS = 0.25  # of the pixels: smoothed borders are fewer
SHOWN = 20  # problems printed one by one; JSON holds them all
COLOR_MODES = ("RGB", "RGBA")


def repeated(dataset: Dataset) -> list[str]:
    """A warning of photos that the split lists more than once, as a list of one line or none."""
    counts = Counter(pair.name for pair in dataset.pairs)
    often = [name for name, count in counts.items() if count > 1]
    if not often:
        return []
    example = f"{often[0]} ({counts[often[0]]} times)"
    line = f"{len(often)} photos are listed more than once, such as {example}: each time counts"
    return [line]


@dataclass(frozen=True)
class Look:
    """The counts of a mask's values, (256,), or of its colours."""

    mode: str = ""
    values: NDArray[np.int64] | None = None
    colors: Counter[int] = field(default_factory=Counter)
    # (value, packed colour) of the values that a palette mask uses.
    shades: frozenset[tuple[int, int]] = frozenset()
    problem: str = ""
    size: tuple[int, int] | None = None  # (W, H) of the photo
    # Of more than three channels: number, sum and sum of squares of the pixels, (3, C).
    moments: NDArray[np.float64] | None = None
    turned: bool = False  # the mask fits the photo as stored, not as its EXIF data turns it


@dataclass
class Report:
    """The result of `check`; `pixels` and `images` count by class, (K,) int64."""

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
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (W, H) of the photos
    moments: NDArray[np.float64] | None = None  # of all photos, as in `Look`
    crop: int = 513  # pixels that a network sees of a photo at once

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.dataset.classes), np.int64)
        self.images = np.zeros(len(self.dataset.classes), np.int64)

    @property
    def usable(self) -> bool:
        """Whether every pair can be read and some pixel has a class."""
        return not self.verdict()

    def add(self, pair: Pair, look: Look) -> None:
        """Add one pair to the counts."""
        if look.mode:
            self.modes[look.mode] += 1
        if look.size:
            self.sizes.append(look.size)
        if look.moments is not None:
            self.moments = look.moments if self.moments is None else self.moments + look.moments
        if look.problem:
            self.problems.append(f"{pair.name}: {look.problem}")
        elif look.turned:
            self.problems.append(
                f"{pair.name}: the photo's EXIF orientation turns or mirrors it, and the mask fits "
                "it as stored: turn the mask as well"
            )
        elif look.values is None:
            self.colored += 1
            self.colors.update(look.colors)
        else:
            self._count(meanings(self.dataset, pair.mask), look.values)
            self.shades |= look.shades

    @property
    def mean(self) -> list[float]:
        """The mean of each channel, from 0 to 255, of a set of more than three channels."""
        if self.moments is None:
            return []
        count, total, _ = self.moments
        return [round(float(value), 2) for value in total / count]

    @property
    def std(self) -> list[float]:
        """The standard deviation of each channel, as `mean`."""
        if self.moments is None:
            return []
        count, total, squares = self.moments
        variance = (squares / count - (total / count) ** 2).clip(0)
        return [round(float(value), 2) for value in np.sqrt(variance)]

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
        """Return the palette for masks of colours."""
        return palettes.choose(self.dataset, self.colors)

    def renumbered(self) -> bool:
        """Whether the colours in palette masks belong to other classes than their values do.

        A program that saves a picture of colours as a palette PNG leaves such a mask:
        the right colours at values in any order.
        """
        used = Counter(color for _, color in self.shades)
        colors = self.dataset.palette
        if len(used) < 2 or not self.dataset.own_palette or len({*colors}) < len(colors):
            return False
        palette = palettes.choose(self.dataset, used, gray=False)
        meaning = meanings(self.dataset, self.dataset.pairs[0].mask)
        return not palette.unknown(used) and any(
            palette.ids[color] != meaning.get(value, VOID) for value, color in self.shades
        )

    def verdict(self) -> str:
        """Return why a training would be useless; empty if it would not be."""
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
        reasons += self.strays()
        if (nothing := self.nothing_to_tell()) and not (self.problems or self.colored):
            reasons.append(nothing)
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

    def strays(self) -> list[str]:
        """The values that are no class, and what they probably mean."""
        if not self.stray:
            return []
        shown = sorted(self.stray)[:VALUES_SHOWN]
        pixels = ", ".join(f"{value} in {self.values[value]} pixels" for value in shown)
        more = f" and {len(self.stray) - len(shown)} more" if len(self.stray) > len(shown) else ""
        line = f"masks hold ids that are no class: {shown}{more} ({pixels}), which are ignored"
        return [line + self._meaning()]

    def _meaning(self) -> str:
        """Explain the probable cause of the stray values, and what to do."""
        pixels = sum(self.values[value] for value in self.stray)
        if len(self.stray) >= MANY and pixels < BORDERS * sum(self.values.values()):
            return (
                ": so many values in so few pixels come from smoothed borders (antialiasing, or "
                "resizing); export the masks without it, and resize them by nearest neighbour"
            )
        return self._values_hint()

    def _values_hint(self) -> str:
        """Which line of dataset.toml the values of the masks ask for."""
        if self.dataset.name != "folder":
            return ""
        used, classes = sorted(self.values), [*range(len(self.dataset.classes))]
        for values in (used, [value for value in used if value not in self._void_values()]):
            if values == classes:
                return ""
            if len(values) == len(classes):
                return f"; as many values as classes: then give `values = {values}` in dataset.toml"
        return (
            "; say which values mean classes by `values` in dataset.toml, or give "
            '`void = "rest"` if all others mean void'
        )

    def _void_values(self) -> set[int]:
        """The values that the description of the set declares void."""
        meaning = meanings(self.dataset, self.dataset.pairs[0].mask)
        return {value for value, index in meaning.items() if index == VOID}

    def absent(self) -> list[str]:
        """Which classes have no pixel."""
        names = [name for name, n in zip(self.dataset.classes, self.pixels, strict=True) if not n]
        if not names or not self.pixels.any():
            return []
        line = f"no pixel of {', '.join(names)}"
        if self.void and self.dataset.name == "folder":
            line += f"; is the value of void really a class?{self._values_hint()}"
        return [line]

    def nothing_to_tell(self) -> str:
        """Return why a network cannot learn from these masks, nor be evaluated; empty if it can."""
        if self.colored:
            return "" if self.pixels.any() else self._on_colors()
        if not self.values:  # no mask could be read: whoever reads the pairs tells why
            return ""
        if not self.pixels.any():
            return f"no pixel has a class: all masks are void{self._values_hint()}"
        if len(self.pixels) > 1 == np.count_nonzero(self.pixels):
            (only,) = np.flatnonzero(self.pixels).tolist()
            return (
                f"every labelled pixel is {self.dataset.classes[only]}: nothing to tell apart"
                f"{self._values_hint()}"
            )
        return ""

    def warnings(self) -> list[str]:
        """Oddities that do not prevent a training."""
        lines = [*self.dataset.notes, *repeated(self.dataset), *self.absent()]
        lines += self._on_sizes()
        if self.empty:
            lines.append(f"{self.empty} masks are void everywhere: nothing is learned from them")
        return lines

    def _on_sizes(self) -> list[str]:
        """A line where most photos are far larger than the crop."""
        sides = sorted(map(max, self.sizes))
        if not sides or (side := sides[len(sides) // 2]) <= 2 * self.crop:
            return []
        line = (
            f"photos are large: half of them have a side of {side} pixels or more. With a crop of "
            f"{self.crop} a network is trained on pieces of them and then served whole photos, "
            f"shrunk {side / self.crop:.1f} times: shrink photos and masks first, or train with "
            "a larger crop (--crop N compares with another)"
        )
        return [line]

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
            "mean": self.mean,
            "std": self.std,
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
        if self.mean:
            lines.append(f"  without init: model.mean={self.mean} model.std={self.std}")
        lines += [f"broken: {problem}" for problem in self.problems[:SHOWN]]
        hidden = len(self.problems) - SHOWN
        lines += [f"... and {hidden} more; --json lists them all"] if hidden > 0 else []
        lines += [f"warning: {warning}" for warning in report["warnings"]]
        return "\n".join([*lines, f"verdict: {report['verdict']}"])
