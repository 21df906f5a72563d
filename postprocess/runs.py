"""The runs of a label map: the longest stretches of equal pixels within its rows.

A map has a few thousand runs, so working on runs takes about as long as reading the map once. A map
can stand for an enlarged one without storing its pixels: each row then stands for several rows of
pixels, and each column for several columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from postprocess.errors import TooComplex

MAX_RUNS = 2_000_000  # about 300 bytes each while regions are joined

Labels = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """The number of pixels of the photo that each row and column of a map stands for."""

    heights: Ints  # (R,)
    widths: Ints  # (C,)

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Spread:
        """The spread of a map (R, C) that has the size of the photo."""
        return cls(np.ones(shape[0], np.int64), np.ones(shape[1], np.int64))

    @cached_property
    def tops(self) -> Ints:
        """(R + 1,) the first row of pixels of each row of the map, and their number."""
        return np.concatenate([[0], np.cumsum(self.heights)])

    @cached_property
    def lefts(self) -> Ints:
        """(C + 1,) the first column of pixels of each column, and their number."""
        return np.concatenate([[0], np.cumsum(self.widths)])


@dataclass(frozen=True)
class Runs:
    """The runs of a map (R, C), from left to right and from top to bottom."""

    shape: tuple[int, int]  # (R, C)
    starts: Ints  # position of the first cell in the flattened map
    labels: Labels  # of the run
    spread: Spread

    @classmethod
    def of(cls, labels: Labels, spread: Spread | None = None) -> Runs:
        """Find the runs; raises TooComplex for more than MAX_RUNS."""
        rows, columns = labels.shape
        flat = np.ascontiguousarray(labels).ravel()
        begins = np.empty(flat.size, np.bool_)
        np.not_equal(flat[1:], flat[:-1], out=begins[1:])
        begins[::columns] = True
        starts = np.flatnonzero(begins)
        if len(starts) > MAX_RUNS:
            raise TooComplex(f"the mask has {len(starts)} runs of pixels, the limit is {MAX_RUNS}")
        return cls((rows, columns), starts, flat[starts], spread or Spread.none(labels.shape))

    @cached_property
    def cells(self) -> Ints:
        """The cells of each run."""
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    @cached_property
    def rows(self) -> Ints:
        """The row of each run."""
        return self.starts // self.shape[1]

    @cached_property
    def columns(self) -> Ints:
        """The first column of each run."""
        return self.starts % self.shape[1]

    @cached_property
    def lefts(self) -> Ints:
        """The first column of pixels of each run."""
        return self.spread.lefts[self.columns]

    @cached_property
    def rights(self) -> Ints:
        """The column of pixels after each run."""
        return np.take(self.spread.lefts, self.columns + self.cells)

    @cached_property
    def pixels(self) -> Ints:
        """The pixels of each run, in all the rows that it stands for."""
        return (self.rights - self.lefts) * self.spread.heights[self.rows]

    def at(self, rows: Ints, columns: Ints) -> Ints:
        """Return the run at each place (row, column) of the map."""
        places = rows * self.shape[1] + columns
        found: Ints = np.searchsorted(self.starts, places, side="right")
        return found - 1

    @cached_property
    def beside(self) -> tuple[Ints, Ints, Ints]:
        """Runs next to each other in a row: left, right, and the length of their border."""
        left = np.flatnonzero(self.rows[1:] == self.rows[:-1])
        return left, left + 1, self.spread.heights[self.rows[left]]

    @cached_property
    def stacked(self) -> tuple[Ints, Ints, Ints]:
        """Runs above each other: upper, lower, and the length of their border."""
        rows, columns = self.shape
        below = self.starts[self.rows > 0]
        above = self.starts[self.rows < rows - 1] + columns
        places = np.union1d(below, above)  # where a run begins in either row
        lower = np.searchsorted(self.starts, places, side="right") - 1
        upper = np.searchsorted(self.starts, places - columns, side="right") - 1
        # All rows are laid end to end, so a border ends where the next one begins.
        wide = self.spread.lefts[-1]
        pixels = places // columns * wide + self.spread.lefts[places % columns]
        return upper, lower, np.diff(pixels, append=rows * wide)

    def painted(self, labels: Labels) -> Labels:
        """Return the map (R, C) with other labels for the runs."""
        return labels.repeat(self.cells).reshape(self.shape)
