"""Find the connected regions of a label map, remove small ones, and fill holes.

A region is a set of pixels of one class that are connected by their sides (4-connected), as a
polygon of the map is. Regions are joined from the runs of the rows, which also know the length
of the border between two regions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from postprocess.areas import Area
from postprocess.runs import Ints, Labels, Runs, Spread


class Borders(NamedTuple):
    """The borders between regions, each from both sides."""

    region: Ints
    neighbour: Ints
    length: Ints  # in pixels


@dataclass(frozen=True)
class Regions:
    """The regions of a label map, numbered by their first pixel, row by row."""

    runs: Runs
    of_run: Ints  # the region of each run

    @classmethod
    def of(cls, labels: Labels, spread: Spread | None = None) -> Regions:
        """Find the regions of a map (R, C).

        Raises TooComplex for more runs than postprocess.runs.MAX_RUNS.
        """
        return cls.joined(Runs.of(labels, spread))

    @classmethod
    def joined(cls, runs: Runs) -> Regions:
        """Join runs to regions."""
        upper, lower, _ = runs.stacked
        same = runs.labels[upper] == runs.labels[lower]
        return cls(runs, joined(len(runs.starts), upper[same], lower[same]))

    @cached_property
    def count(self) -> int:
        """The number of regions."""
        return int(self.of_run.max()) + 1

    @cached_property
    def labels(self) -> Labels:
        """The class of each region."""
        found = np.empty(self.count, np.uint8)
        found[self.of_run] = self.runs.labels
        return found

    @cached_property
    def areas(self) -> Ints:
        """The pixels of each region."""
        return self.sums(self.runs.pixels)

    def sums(self, of_runs: Ints) -> Ints:
        """Add up a value of the runs for each region."""
        # In float64, which holds whole numbers exactly up to 2 ** 53.
        return np.bincount(self.of_run, of_runs, self.count).astype(np.int64)

    @cached_property
    def boxes(self) -> Ints:
        """The bounding box of each region: (N, 4), [x0, y0, x1, y1) in pixels."""
        runs, tops = self.runs, self.runs.spread.tops
        boxes = np.zeros((self.count, 4), np.int64)
        boxes[:, :2] = runs.spread.lefts[-1], tops[-1]
        np.minimum.at(boxes[:, 0], self.of_run, runs.lefts)
        np.minimum.at(boxes[:, 1], self.of_run, tops[runs.rows])
        np.maximum.at(boxes[:, 2], self.of_run, runs.rights)
        np.maximum.at(boxes[:, 3], self.of_run, tops[runs.rows + 1])
        return boxes

    @cached_property
    def borders(self) -> Borders:
        """The borders between regions, each pair once from either side."""
        pairs = [
            np.concatenate(each) for each in zip(self.runs.beside, self.runs.stacked, strict=True)
        ]
        one, other, length = self.of_run[pairs[0]], self.of_run[pairs[1]], pairs[2]
        differ = one != other
        one, other, length = one[differ], other[differ], length[differ]
        keys = np.concatenate([one * self.count + other, other * self.count + one])
        found, at = np.unique(keys, return_inverse=True)
        total = np.bincount(at, np.tile(length, 2), len(found)).astype(np.int64)
        return Borders(found // self.count, found % self.count, total)

    @cached_property
    def at_edge(self) -> NDArray[np.bool_]:
        """Whether each region touches the edge of the map."""
        runs = self.runs
        touches = (runs.rows == 0) | (runs.rows == runs.shape[0] - 1)
        touches |= (runs.columns == 0) | (runs.columns + runs.cells == runs.shape[1])
        found = np.zeros(self.count, np.bool_)
        found[self.of_run[touches]] = True
        return found

    def map(self) -> Ints:
        """Return the number of the region of each pixel, (R, C)."""
        return self.of_run.repeat(self.runs.cells).reshape(self.runs.shape)


def joined(count: int, one: Ints, other: Ints) -> Ints:
    """Number the connected components of `count` nodes with edges from `one` to `other`."""
    root = np.arange(count)
    while len(one):
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        apart = low < high
        one, other = one[apart], other[apart]
        np.minimum.at(root, high[apart], low[apart])
        while (root[root] != root).any():
            root = root[root]
    return np.unique(root, return_inverse=True)[1]


def without_small(labels: Labels, min_area: Area, spread: Spread | None = None) -> Labels:
    """Give every region smaller than `min_area` the class around it: (R, C) -> (R, C).

    It takes the class that it shares the longest border with, counting only neighbours that are
    large enough (of equal borders, the class with the lower id). Regions with only small
    neighbours follow once a neighbour has a class. If no region is large enough, nothing changes.
    """
    regions = Regions.of(labels, spread)
    settled = regions.areas >= min_area.pixels(int(regions.areas.sum()))
    if settled.all() or not settled.any():
        return labels
    classes, borders = regions.labels.copy(), regions.borders
    while not settled.all():
        useful = ~settled[borders.region]
        borders = Borders(*(each[useful] for each in borders))
        known = settled[borders.neighbour]
        region, best = _longest(
            borders.region[known], classes[borders.neighbour[known]], borders.length[known]
        )
        classes[region] = best
        settled[region] = True
    return regions.runs.painted(classes[regions.of_run])


def _longest(region: Ints, label: Labels, length: Ints) -> tuple[Ints, Labels]:
    """For each region in `region`, return the class with the longest total border."""
    keys, at = np.unique(region * 256 + label, return_inverse=True)
    total = np.bincount(at, length, len(keys))
    order = np.lexsort((keys, -total, keys // 256))  # by region; the best class first
    regions, first = np.unique(keys[order] // 256, return_index=True)
    return regions, (keys[order][first] % 256).astype(np.uint8)


def without_holes(
    labels: Labels, max_area: Area, holes: Collection[int], spread: Spread | None = None
) -> Labels:
    """Fill holes of up to `max_area` with the class around them: (R, C) -> (R, C).

    A hole is a region of one of the classes `holes` that does not touch the map's edge and whose
    neighbours are all of one class.
    """
    regions = Regions.of(labels, spread)
    borders, classes = regions.borders, regions.labels.copy()
    lowest = np.full(regions.count, 255, np.uint8)
    highest = np.zeros(regions.count, np.uint8)
    np.minimum.at(lowest, borders.region, classes[borders.neighbour])
    np.maximum.at(highest, borders.region, classes[borders.neighbour])
    filled = np.isin(classes, list(holes)) & ~regions.at_edge & (lowest == highest)
    filled &= regions.areas <= max_area.pixels(int(regions.areas.sum()))
    if not filled.any():
        return labels
    classes[filled] = lowest[filled]
    return regions.runs.painted(classes[regions.of_run])
