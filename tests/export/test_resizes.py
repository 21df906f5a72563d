"""Constant factors give exactly the sizes that the tracer computed."""

from __future__ import annotations

import numpy as np

from export.resizes import factor


def test_the_operator_takes_every_side_to_the_size_wanted() -> None:
    """Its rule is floor(side * factor): ONNX Runtime in float32, onnx's checker in double."""
    for before in range(1, 200):
        for after in (*range(1, 200), 513, 769, 1025, 2049, 4097):
            scale = np.float32(factor(before, after))
            assert int(np.floor(np.float32(before) * scale)) == after
            assert int(before * float(scale)) == after
            assert abs(float(scale) * before / after - 1) < 2e-7
