"""Mean IoU near object boundaries, by band width (section 4.4 and figure 5a of the paper).

VOC's annotators left a rim of void pixels around every object. The band of width w
contains the pixels that a dilation of the void label by a square of side 2w + 1 adds,
as in the authors' own evaluation code. The void pixels themselves are ignored. Void
areas that are no rim (VOC's "difficult" objects) have a band too, as in that code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.data.dataset import DatasetError
from model.evaluate.metrics import Confusion
from model.evaluate.morphology import dilate


class Trimap:
    """Confusion matrices of all bands, from one pass over the pictures."""

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        self.widths = tuple(sorted(set(widths)))
        self._rings = [Confusion(classes) for _ in self.widths]

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count one picture, (H, W) twice; truth >= K is void."""
        void = truth >= self._rings[0].classes
        inner = void
        for width, ring in zip(self.widths, self._rings, strict=True):
            outer = dilate(void, width)
            added = outer & ~inner
            ring.add(truth[added], prediction[added])
            inner = outer

    def confusions(self) -> dict[int, Confusion]:
        """The matrix of each band by its width; a band contains the narrower ones."""
        counts = np.cumsum([ring.counts for ring in self._rings], axis=0)
        bands = {}
        for width, ring, total in zip(self.widths, self._rings, counts, strict=True):
            bands[width] = Confusion(ring.classes)
            bands[width].counts = total
        return bands

    def miou(self) -> dict[int, float]:
        """Mean IoU by band width in pixels.

        Raises DatasetError if no labelled pixel touches a void one: then there is no band.
        """
        bands = self.confusions()
        if not bands[self.widths[0]].pixels:
            raise DatasetError(
                "--trimap: no mask has void pixels next to labelled ones, so there is no band; "
                "leave out --trimap for this data set"
            )
        return {width: confusion.miou() for width, confusion in bands.items()}
