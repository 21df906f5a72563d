"""Dilate a mask by a square with running sums, so that the cost does not depend on the width."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dilate(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Set every pixel within `width` rows and columns of a set one: (H, W) -> (H, W).

    The structuring element is a square of side 2 * width + 1; outside the
    picture nothing is set.
    """
    for axis in (0, 1):
        side = mask.shape[axis]
        sums = np.zeros([n + (i == axis) for i, n in enumerate(mask.shape)], np.int32)
        np.cumsum(mask, axis=axis, out=sums[1:] if axis == 0 else sums[:, 1:])
        after = np.minimum(np.arange(side) + width + 1, side)
        before = np.maximum(np.arange(side) - width, 0)
        mask = sums.take(after, axis) > sums.take(before, axis)
    return mask


def inner_boundary(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels of `mask` within `width` of a pixel outside of it or of the picture's edge."""
    outside = np.pad(~mask, 1, constant_values=True)
    return mask & dilate(outside, width)[1:-1, 1:-1]
