"""Number the connected regions of classes, such as each of several separate cars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from postprocess.errors import TooComplex
from postprocess.outlines import Polygon
from postprocess.regions import Regions
from postprocess.runs import Floats, Ints, Labels, Runs, Spread

MAX_INSTANCES = 10_000  # each has an entry in JSON


@dataclass(frozen=True)
class Instances:
    """The regions of the chosen classes: by class, the largest first."""

    cells: Labels  # (R, C), the map
    regions: Regions
    chosen: Ints  # (N,) the number of each instance's region

    @classmethod
    def of(
        cls, labels: Labels, classes: Collection[int], spread: Spread | None = None
    ) -> Instances:
        """Find the instances in a map (R, C).

        Raises TooComplex for more than MAX_INSTANCES, or more runs than postprocess.runs.MAX_RUNS.
        """
        regions = Regions.of(labels, spread)
        chosen = np.flatnonzero(np.isin(regions.labels, list(classes)))
        if len(chosen) > MAX_INSTANCES:
            raise TooComplex(f"the mask has {len(chosen)} instances, the limit is {MAX_INSTANCES}")
        order = np.lexsort((chosen, -regions.areas[chosen], regions.labels[chosen]))
        return cls(labels, regions, chosen[order])

    def map(self) -> Ints:
        """Return the number of the instance of each cell from 1 on, 0 elsewhere: (R, C)."""
        return (
            self._numbers()[self.regions.of_run]
            .repeat(self.regions.runs.cells)
            .reshape(self.regions.runs.shape)
        )

    def _numbers(self) -> Ints:
        """Return the number of each region's instance, 0 for other regions."""
        numbers = np.zeros(self.regions.count, np.int64)
        numbers[self.chosen] = np.arange(1, len(self.chosen) + 1)
        return numbers

    def mean_confidence(self, confidence: Labels) -> Floats:
        """Return the mean of a map (R, C) over each instance's pixels: (N,)."""
        runs = self.regions.runs
        if (runs.spread.widths == 1).all():
            sums = np.add.reduceat(confidence.ravel(), runs.starts, dtype=np.int64)
        else:
            sums = np.add.reduceat((confidence * runs.spread.widths).ravel(), runs.starts)
        totals = self.regions.sums(sums * runs.spread.heights[runs.rows])
        return totals[self.chosen] / self.regions.areas[self.chosen]

    def numbers_of(self, polygons: Sequence[Polygon]) -> list[int]:
        """Return the number of the instance that each polygon, in cells, outlines."""
        # The cell below and to the right of its highest, then leftmost corner belongs to it.
        corners = [min((y, x) for x, y in polygon[0]) for polygon in polygons]
        rows, columns = np.array(corners, np.int64).reshape(-1, 2).T
        run = self.regions.runs.at(rows, columns)
        return [int(number) for number in self._numbers()[self.regions.of_run[run]]]

    def run_lengths(self) -> list[list[int]]:
        """Return COCO's run lengths of each instance: columns one after another, zeros first."""
        spread = self.regions.runs.spread
        turned = Runs.of(np.ascontiguousarray(self.cells.T), Spread(spread.widths, spread.heights))
        run = self.regions.runs.at(turned.columns, turned.rows)
        number = self._numbers()[self.regions.of_run[run]]
        again = spread.widths[turned.rows] * (number > 0)  # as many columns of pixels
        column = np.repeat(spread.lefts[turned.rows], again)
        column += np.arange(again.sum()) - np.repeat(np.cumsum(again) - again, again)
        start = column * spread.tops[-1] + np.repeat(turned.lefts, again)
        end = start + np.repeat(turned.rights - turned.lefts, again)
        return _merged(
            np.repeat(number, again), start, end, int(spread.tops[-1] * spread.lefts[-1])
        )


def _merged(number: Ints, start: Ints, end: Ints, pixels: int) -> list[list[int]]:
    """Join runs that follow each other, and give the lengths of gaps and runs in turn."""
    if not len(number):
        return []
    order = np.lexsort((start, number))
    number, start, end = number[order], start[order], end[order]
    begins = np.diff(number, prepend=0) > 0
    apart = np.ones(len(start), np.bool_)
    apart[1:] = begins[1:] | (start[1:] != end[:-1])
    first = np.flatnonzero(apart)
    number, start = number[first], start[first]
    end = end[np.append(first[1:] - 1, len(end) - 1)]
    bounds = np.stack([start, end], axis=1).ravel()
    owners = np.flatnonzero(np.diff(number, prepend=0)) * 2
    found = [np.diff(part, prepend=0) for part in np.split(bounds, owners[1:]) if len(part)]
    # A mask that ends with ones has no gap after them.
    rests = [pixels - int(each.sum()) for each in found]
    return [each.tolist() + [rest] * (rest > 0) for each, rest in zip(found, rests, strict=True)]
