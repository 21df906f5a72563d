"""Softmax computed in parts equals softmax."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from export.graph import largest_probability
from export.softmax import spread_softmax


def model(axis: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, "h", "w"])
    node = helper.make_node("Softmax", ["x"], ["y"], name="softmax", axis=axis)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, "h", "w"])
    graph = helper.make_graph([node], "graph", [value], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_probabilities_are_the_same_and_large_logits_do_not_overflow() -> None:
    proto = model(axis=1)
    spread_softmax(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert "Softmax" not in {node.op_type for node in proto.graph.node}
    x = np.random.default_rng(0).normal(scale=200, size=(2, 5, 7, 9)).astype(np.float32)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    truth = torch.from_numpy(x).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_a_softmax_over_another_axis_stays() -> None:
    proto = model(axis=3)
    spread_softmax(proto)
    assert proto == model(axis=3)


def test_the_largest_probability_is_that_of_softmax() -> None:
    logits = torch.randn(2, 21, 5, 6, generator=torch.manual_seed(0)) * 30
    torch.testing.assert_close(largest_probability(logits), logits.softmax(dim=1).amax(dim=1))
