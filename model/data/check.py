"""Is a data set fit for training? Every image and mask is read once, one pair at a time."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from model.data.dataset import VOID, Dataset, DatasetError, Pair
from model.data.photo import open_photo

SHOWN = 20  # problems printed one by one; JSON holds them all


@dataclass
class Report:
    """What `check` saw; `pixels` and `images` count by mask value, (256,) int64."""

    dataset: Dataset
    modes: Counter[str] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether every pair can be read and some pixel has a class."""
        return not self.verdict()

    def stray(self) -> list[int]:
        """Mask values that are neither a class nor void: training takes them for void."""
        known = {*range(len(self.dataset.classes)), self.dataset.void, VOID}
        return [int(value) for value in np.flatnonzero(self.pixels) if int(value) not in known]

    def labelled(self) -> NDArray[np.int64]:
        """Pixels of each class, (K,)."""
        counts = self.pixels[: len(self.dataset.classes)].copy()
        if self.dataset.void < len(counts):
            counts[self.dataset.void] = 0
        return counts

    def verdict(self) -> str:
        """Why a training would be wasted; empty when it would not."""
        reasons = []
        if self.problems:
            reasons.append(f"{len(self.problems)} of {len(self.dataset.pairs)} pairs are broken")
        if self.stray():
            reasons.append(f"masks hold ids that are no class: {self.stray()}")
        if not self.labelled().any():
            reasons.append("no pixel has a class")
        return "; ".join(reasons)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; shares are of all mask pixels."""
        total = max(1, int(self.pixels.sum()))
        labelled = self.labelled()
        return {
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "pairs": len(self.dataset.pairs),
            "modes": dict(self.modes),
            "void_share": 1 - int(labelled.sum()) / total if self.pixels.any() else None,
            "classes": {
                name: {"share": int(labelled[i]) / total, "images": int(self.images[i])}
                for i, name in enumerate(self.dataset.classes)
            },
            "stray_ids": self.stray(),
            "problems": self.problems,
            "verdict": self.verdict() or "usable",
        }

    def to_text(self) -> str:
        """Return the report for reading."""
        report = self.to_json()
        void = report["void_share"]
        lines = [
            f"{report['dataset']} {report['split']}: {report['pairs']} pairs, {report['modes']}"
        ]
        lines += [
            f"  {name:<16} {row['share']:7.2%} of pixels, {row['images']} images"
            for name, row in report["classes"].items()
        ]
        lines += [] if void is None else [f"  {'void':<16} {void:7.2%} of pixels"]
        lines += [f"broken: {problem}" for problem in self.problems[:SHOWN]]
        hidden = len(self.problems) - SHOWN
        lines += [f"... and {hidden} more; --json lists them all"] if hidden > 0 else []
        return "\n".join([*lines, f"verdict: {report['verdict']}"])


def check(dataset: Dataset) -> Report:
    """Read every pair of `dataset`; what cannot be used is reported, never raised."""
    report = Report(dataset)
    for pair in tqdm(dataset.pairs, unit="pair", disable=not sys.stderr.isatty()):
        try:
            _look(pair, report)
        except (DatasetError, OSError, ValueError, SyntaxError) as error:  # Pillow's, for bad files
            report.problems.append(f"{pair.name}: {error}")
    return report


def _look(pair: Pair, report: Report) -> None:
    for path in (pair.image, pair.mask):
        if not path.is_file():
            raise DatasetError(f"{path} is missing")
    try:
        with Image.open(pair.mask) as mask:
            mode, ids = mask.mode, np.asarray(mask)
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{pair.mask} cannot be read: {error}") from error
    report.modes[mode] += 1
    if mode not in ("P", "L"):
        raise DatasetError(f"{pair.mask} has mode {mode}: masks hold class ids (mode P or L)")
    try:
        size = open_photo(pair.image).size
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{pair.image} cannot be read: {error}") from error
    if size != ids.shape[::-1]:
        raise DatasetError(f"image is {size} pixels, mask {ids.shape[::-1]} (width, height)")
    counts = np.bincount(ids.ravel(), minlength=256)
    report.pixels += counts
    report.images += counts > 0
