"""What a check of a data set found, in words and as plain values.

What makes a training a waste is in the verdict: broken pairs, ids that are no
class, masks of colours, pixels of no class or of a single one. What is merely odd is a warning.
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

SHOWN = 20  # problems printed one by one; JSON holds them all
COLOR_MODES = ("RGB", "RGBA")


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
        colors = self.dataset.palette
        if len(used) < 2 or not self.dataset.own_palette or len({*colors}) < len(colors):
            return False
        palette = palettes.choose(self.dataset, used, gray=False)
        meaning = meanings(self.dataset, self.dataset.pairs[0].mask)
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
        if len(self.pixels) > 1 == np.count_nonzero(self.pixels) and not self.problems:
            (only,) = np.flatnonzero(self.pixels).tolist()
            reasons.append(f"every judged pixel is {self.dataset.classes[only]}: nothing to tell")
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
