"""Choose ranges of int8 weights so that integer kernels cannot overflow.

CPUs without VNNI multiply activations (uint8) and weights (int8) in pairs and add each pair
in 16 bits, where sums saturate (`vpmaddubsw`): one file would give other labels there than
on a CPU with VNNI. Seven bits for every weight would prevent that. It is enough if no two
neighbours of one sign exceed 16 bits, which costs most channels less precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.tail import learned


def safe_ranges(proto: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """For the quantizer: the range of every channel of every weight that is multiplied in pairs.

    A pair's sum then has 127 steps, 128 after rounding: 255 * 128 < 2**15. Depthwise
    convolutions are left out: their kernels add in 32 bits.
    """
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in filter(learned, proto.graph.node):
        values = numpy_helper.to_array(weights[node.input[1]])
        if values.shape[1] > 1:
            found[node.input[1]] = [
                {"axis": 0, "rmin": -limit, "rmax": limit} for limit in largest_pairs(values)
            ]
    return found


def largest_pairs(weights: NDArray[Any]) -> NDArray[Any]:
    """For each channel the largest sum of two neighbours of one sign: (C', C, h, w) -> (C',).

    Neighbours are counted in both memory layouts that kernels use.
    """
    sums = [
        np.maximum(pairs.clip(0).sum(2).max(1), (-pairs).clip(0).sum(2).max(1))
        for pairs in map(_pairs, (weights, weights.transpose(0, 2, 3, 1)))
    ]
    return np.maximum(*sums)  # type: ignore[no-any-return]


def _pairs(weights: NDArray[Any]) -> NDArray[Any]:
    """(C', ...) -> (C', pairs, 2), padded with a zero where the count is odd."""
    rows = weights.reshape(len(weights), -1)
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
