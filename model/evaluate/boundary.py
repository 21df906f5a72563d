"""Boundary IoU (Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation").

For each class only pixels near the edge of the true and of the predicted region
count: those within d of the region's outside, where d is 2 % of the picture's
diagonal, or a number of pixels. Intersections and unions are summed over the whole
set, then divided, then averaged over classes, like mIoU.

The measure does not define void pixels. They are removed from both regions before
the edges are taken; otherwise VOC's void rim would move the edge of a perfect
prediction away from the true one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.evaluate.morphology import inner_boundary

DILATION_RATIO = 0.02  # of the diagonal; the authors' value for whole pictures


class BoundaryIoU:
    """Intersection and union of the pixels near edges, by class, over a whole data set."""

    def __init__(
        self, classes: int, ratio: float = DILATION_RATIO, pixels: int | None = None
    ) -> None:
        """`pixels`: the distance d in all pictures, in place of a share of the diagonal."""
        self.ratio = ratio
        self.pixels = pixels
        self.intersections = np.zeros(classes, np.int64)
        self.unions = np.zeros(classes, np.int64)

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count one picture, (H, W) twice; truth >= K is void."""
        classes = len(self.unions)
        judged = truth < classes
        width = self.pixels or max(1, round(self.ratio * float(np.hypot(*truth.shape))))
        for label in np.union1d(truth[judged], prediction[judged]):
            true = inner_boundary(truth == label, width)
            predicted = inner_boundary((prediction == label) & judged, width)
            self.intersections[label] += (true & predicted).sum()
            self.unions[label] += (true | predicted).sum()

    def iou(self) -> NDArray[np.float64]:
        """By class, (K,); NaN for a class that never occurs."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.intersections / self.unions)

    def miou(self) -> float:
        """Mean over the classes that occur."""
        return float(np.nanmean(self.iou()))
