"""Mean intersection over union from one confusion matrix, as PASCAL VOC defines it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.data.dataset import DatasetError


class Metric(Protocol):
    """A metric that counts every picture of a data set and its prediction once."""

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count one picture: two arrays of class ids (H, W); truth >= K is void."""


class Confusion:
    """Counts of (truth, prediction) pairs over a whole data set."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count one picture: two arrays of class ids of equal shape; truth >= K is void."""
        if truth.shape != prediction.shape:
            raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}")
        judged = truth < self.classes
        pairs = truth[judged].astype(np.int64) * self.classes + prediction[judged]
        counted = np.bincount(pairs, minlength=self.classes**2)
        self.counts += counted.reshape(self.classes, self.classes)

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.counts.sum())

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union by class, (K,); NaN for a class that never occurs."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        with np.errstate(invalid="ignore"):
            return np.asarray(hits / union)

    def precision(self) -> NDArray[np.float64]:
        """The share of the pixels predicted as a class that belong to it, (K,); NaN without any."""
        return self._share(self.counts.sum(0))

    def recall(self) -> NDArray[np.float64]:
        """The share of a class's pixels that are predicted as it, (K,); NaN without any."""
        return self._share(self.counts.sum(1))

    def dice(self) -> NDArray[np.float64]:
        """Dice's coefficient by class, which is F1: the harmonic mean of the two, (K,)."""
        return self._share((self.counts.sum(0) + self.counts.sum(1)) / 2)

    def accuracy(self) -> float:
        """The share of all pixels that are right; NaN without any."""
        return float(np.diag(self.counts).sum() / self.pixels) if self.pixels else float("nan")

    def _share(self, of: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.diag(self.counts) / of)

    def miou(self) -> float:
        """The mean over the classes that occur; raises DatasetError if no pixel was evaluated."""
        if not self.pixels:
            raise DatasetError("no pixel was evaluated: every mask is void; see model.data check")
        return float(np.nanmean(self.iou()))
