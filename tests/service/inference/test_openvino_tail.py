"""The rewritten end of a graph computes what the convolution computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference import openvino_tail
from service.inference.openvino_cpu import problem

pytestmark = pytest.mark.skipif(problem() is not None, reason=str(problem()))

CLASSES, PIXELS, HEIGHT, WIDTH = 3, 6, 5, 7


def bilinear() -> NDArray[np.float32]:
    """The weights of four logits in 2 x 3 pixels between them: (6, 2, 2)."""
    rows = np.array([[1 - part, part] for part in (0, 1 / 2)])
    columns = np.array([[1 - part, part] for part in (0, 1 / 3, 2 / 3)])
    shares = np.einsum("ai,bj->abij", rows, columns)
    return np.asarray(shares.reshape(PIXELS, 2, 2), np.float32)


def model(weights: NDArray[np.float32], *, pad: int = 1) -> Any:
    """A model of one convolution with weights (K, P, h, w)."""
    import openvino
    from openvino import opset13 as ops

    logits = ops.parameter([1, CLASSES, HEIGHT, WIDTH], np.float32, name="logits")
    shares = ops.constant(weights[:, :, None])
    enlarged = ops.group_convolution(logits, shares, [1, 1], [pad, pad], [pad, pad], [1, 1])
    return openvino.Model([ops.relu(enlarged)], [logits], "tail")


def run(what: Any, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    import openvino

    compiled = openvino.Core().compile_model(what, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([logits])[0])


def convolutions(what: Any) -> int:
    return sum(node.get_type_name() == "GroupConvolution" for node in what.get_ordered_ops())


def test_sums_of_shifted_maps_are_the_convolution() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1, CLASSES, HEIGHT, WIDTH)).astype(np.float32)
    weights = np.repeat(bilinear()[None], CLASSES, axis=0)
    before, after = model(weights), model(weights)
    assert openvino_tail.rewrite(after)
    assert (convolutions(before), convolutions(after)) == (1, 0)
    expected, found = run(before, logits), run(after, logits)
    assert expected.shape == found.shape == (1, CLASSES * PIXELS, HEIGHT + 1, WIDTH + 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["unlike classes", "larger kernel", "no padding"])
def test_other_convolutions_stay_as_they_are(kind: str) -> None:
    weights = np.repeat(bilinear()[None], CLASSES, axis=0)
    if kind == "unlike classes":
        weights[1] *= 2
    if kind == "larger kernel":
        weights = np.pad(weights, ((0, 0), (0, 0), (0, 1), (0, 1)))
    other = model(weights, pad=0 if kind == "no padding" else 1)
    assert not openvino_tail.rewrite(other)
    assert convolutions(other) == 1
