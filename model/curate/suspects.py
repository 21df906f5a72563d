"""Find regions of a mask in which a network confidently disagrees with the label.

Along borders, networks are uncertain and labels are coarse. So only the interior of a
disagreement counts: pixels farther from its border than a hundredth of the photo's shorter side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

INTERIOR = 0.01  # of the photo's shorter side, at least 2 pixels

Labels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True, order=True)
class Suspect:
    """A region whose label is probably wrong; suspects are ordered by their score."""

    score: float  # probability missing for the label, summed over the interior
    photo: str
    label: int  # the class id in the mask
    predicted: int
    box: tuple[int, int, int, int]  # [x0, y0, x1, y1) in pixels
    pixels: int
    margin: float  # mean probability of the prediction less that of the label, 0 to 1


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
    codes = np.where(differs, safe.astype(np.int32) * 256 + predicted, -1)
    for code in np.unique(codes[differs]).tolist():
        for region, box in _components(codes == code):
            inner = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] > radius
            if not inner.any():
                continue
            margin = float(margins[box][region].mean())
            if margin < least:
                continue
            score = float(margins[box][inner].sum() / truth.size) ** 0.5 * margin
            (top, bottom), (left, right) = ((part.start, part.stop) for part in box)
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
