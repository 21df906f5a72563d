"""Find regions of a mask in which a network confidently disagrees with the label.

Along borders, networks are uncertain and labels are coarse. So only the interior of a
disagreement counts: pixels farther from its border than a hundredth of the photo's shorter side.

A wrong label usually concerns a whole object, and a mistake of the network a part of one: the
score is multiplied by the region's share of the labelled or of the predicted object. A network that
rarely recognises a class says little about its labels: `weighted` multiplies by the class's recall,
the share of its labelled pixels that get it. The thresholds of confident learning (Northcutt, Jiang
and Chuang 2021), one for each class, serve the same purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

INTERIOR = 0.01  # of the photo's shorter side, at least 2 pixels

Labels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True, order=True)
class Suspect:
    """A region whose label is probably wrong; suspects are ordered by their score."""

    score: float  # from the probability missing for the label, summed over the interior
    photo: str
    label: int  # the class id in the mask
    predicted: int
    box: tuple[int, int, int, int]  # [x0, y0, x1, y1) in pixels
    pixels: int
    margin: float  # mean probability of the prediction less that of the label, 0 to 1


class Recalls:
    """How much of each class a network recognises, counted photo by photo."""

    def __init__(self, classes: int) -> None:
        self._right = np.zeros(classes)  # pixels
        self._labelled = np.zeros(classes)
        self._photo = 0.0  # pixels of the largest photo

    def add(self, truth: Labels, predicted: Labels) -> None:
        """Count a photo: both (H, W); void counts as nothing."""
        classes = len(self._right)
        judged = truth < classes
        self._labelled += np.bincount(truth[judged], minlength=classes)
        self._right += np.bincount(truth[judged & (truth == predicted)], minlength=classes)
        self._photo = max(self._photo, float(truth.size))

    def of_classes(self) -> NDArray[np.float64]:
        """The recall of each class, 0 to 1, as if one more photo had the mean recall.

        So that a class of a few pixels, which may all be labelled wrongly, is not taken for one
        that the network cannot recognise.
        """
        seen = self._labelled > 0
        if not seen.any():
            return np.ones(len(seen))
        mean = float((self._right[seen] / self._labelled[seen]).mean())
        return (self._right + mean * self._photo) / (self._labelled + self._photo)


def weighted(found: Iterable[Suspect], recalls: Recalls) -> list[Suspect]:
    """Multiply each score by the recall of the label's class; worst first."""
    recall = recalls.of_classes()
    return sorted(
        (replace(each, score=each.score * float(recall[each.label])) for each in found),
        reverse=True,
    )


class _Objects:
    """The connected regions of a label map, found class by class when they are needed."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._found: dict[int, tuple[NDArray[np.int32], NDArray[np.intp]]] = {}

    def size(self, label: int, place: tuple[int, int]) -> int:
        """The pixels of the region of this class at a place (row, column)."""
        if label not in self._found:
            numbered, _ = ndimage.label(self._labels == label)
            self._found[label] = numbered, np.bincount(numbered.ravel())
        numbered, sizes = self._found[label]
        return int(sizes[numbered[place]])


def suspects(
    photo: str, truth: Labels, probabilities: Probabilities, least: float = 0.3
) -> Iterator[Suspect]:
    """Return the regions of a photo where another class is likelier than the label by `least`.

    truth (H, W) with void 255; probabilities (K, H, W).
    """
    predicted = probabilities.argmax(axis=0).astype(np.uint8)
    judged = truth < len(probabilities)
    differs = judged & (predicted != truth)
    if not differs.any():
        return
    radius = max(2.0, INTERIOR * min(truth.shape))
    safe = np.where(judged, truth, 0)
    of_prediction, of_label = (
        np.take_along_axis(probabilities, ids[None].astype(np.intp), axis=0)[0]
        for ids in (predicted, safe)
    )
    margins = of_prediction - of_label
    labelled, seen = _Objects(truth), _Objects(predicted)
    codes = np.where(differs, safe.astype(np.int32) * 256 + predicted, -1)
    for code in np.unique(codes[differs]).tolist():
        for region, box in _components(codes == code):
            inner = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] > radius
            if not inner.any():
                continue
            margin = float(margins[box][region].mean())
            if margin < least:
                continue
            (top, bottom), (left, right) = ((part.start, part.stop) for part in box)
            row, column = divmod(int(region.argmax()), region.shape[1])
            place = top + row, left + column
            whole = min(labelled.size(code >> 8, place), seen.size(code & 255, place))
            share = float(region.sum() / whole)
            score = float(margins[box][inner].sum() / truth.size) ** 0.5 * margin * share
            yield Suspect(
                score,
                photo,
                code >> 8,
                code & 255,
                (left, top, right, bottom),
                int(region.sum()),
                margin,
            )


def _components(
    mask: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.bool_], tuple[slice, slice]]]:
    """The 4-connected components of a mask: each within its bounding box, and the box."""
    numbered, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        yield numbered[box] == number, box
