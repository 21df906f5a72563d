"""A polygon with holes, written as one ring with cuts, has the same pixels in pycocotools."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from annotations.keyholes import keyholed
from postprocess.outlines import polygons


def drawn(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Write all polygons of a mask as single rings and draw them with COCO's code."""
    height, width = pixels.shape
    flat = [[n for corner in keyholed(rings) for n in corner] for rings in polygons(pixels)]
    if not flat:
        return np.zeros_like(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0 with NumPy 2
        decoded = coco.decode(coco.merge(coco.frPyObjects(flat, height, width)))
    return np.asarray(decoded, bool)


@pytest.mark.parametrize("density", [0.3, 0.5, 0.7, 0.9])
def test_random_masks_keep_every_pixel(density: float) -> None:
    """The masks have neighbouring holes, holes that meet at corners, and islands in holes."""
    rng = np.random.default_rng(round(100 * density))
    for _ in range(60):
        pixels = rng.random(tuple(rng.integers(1, 30, 2))) < density
        assert (drawn(pixels) == pixels).all()


def test_a_frame_becomes_one_ring_with_a_cut() -> None:
    frame = np.ones((5, 5), bool)
    frame[2, 2] = False
    (rings,) = polygons(frame)
    ring = keyholed(rings)
    assert len(ring) == 4 + 4 + 3  # two rings of 4, and the cut
    assert (drawn(frame) == frame).all()
