"""Integer kernels compute what the file says, even if they add pairs in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export import quantize
from export.saturation import largest_pairs, safe_ranges
from service.inference.contract import INPUT, LABELS

SIDE = 9


def equal_weights(channels: int) -> onnx.ModelProto:
    """Two 1x1 convolutions whose weights are all the same, the worst case for pairs."""
    weights = {
        "first": np.ones((channels, 3, 1, 1), np.float32),
        "second": np.ones((channels, channels, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Transpose", [INPUT], ["moved"], "move", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["moved"], ["x"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "first"], ["a"], "a"),
        helper.make_node("Relu", ["a"], ["b"], "b"),
        helper.make_node("Conv", ["b", "second"], [LABELS], "c"),
    ]
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", SIDE, SIDE, 3])
    shape: list[str | int] = ["n", channels, SIDE, SIDE]
    labels = helper.make_tensor_value_info(LABELS, TensorProto.FLOAT, shape)
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", [image], [labels], constants)
    opset = helper.make_opsetid("", 18)
    return quantize._prepared(helper.make_model(graph, opset_imports=[opset], ir_version=10))


def run(proto: onnx.ModelProto, images: NDArray[np.uint8], *, integer: bool) -> NDArray[Any]:
    """Return the output. Without optimizations, ONNX Runtime computes an 8-bit file in float."""
    options = ort.SessionOptions()
    if not integer:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run([LABELS], {INPUT: images})[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("channels", [8, 13])
def test_kernels_of_any_cpu_compute_what_the_file_says(channels: int) -> None:
    proto = equal_weights(channels)
    images = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
    images[0, 0] = 0
    quantized = quantize._quantize(proto, quantize.calibrate(proto, [images[0]]))
    assert "QuantizeLinear" in {node.op_type for node in quantized.graph.node}
    exact = run(quantized, images, integer=False)
    assert exact.max() == pytest.approx(255 * 3 * channels, rel=0.01)
    np.testing.assert_allclose(run(quantized, images, integer=True), exact, rtol=0.01)


def test_the_largest_pair_is_that_of_either_memory_layout() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 5, 3, 2))
    expected = []
    for channel in weights:
        sums = [0.0]
        for order in (channel.ravel(), channel.transpose(1, 2, 0).ravel()):
            for at in range(0, len(order), 2):
                pair = order[at : at + 2]
                sums += [pair[pair > 0].sum(), -pair[pair < 0].sum()]
        expected.append(max(sums))
    np.testing.assert_allclose(largest_pairs(weights), expected)
    assert (largest_pairs(weights) >= np.abs(weights).max((1, 2, 3))).all()


def test_depthwise_weights_keep_all_their_bits() -> None:
    proto = equal_weights(4)
    (first,) = (tensor for tensor in proto.graph.initializer if tensor.name == "first")
    first.CopyFrom(numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), "first"))
    assert set(safe_ranges(proto)) == {"second"}
