"""Put a foreign network between the contract's input and outputs.

The graph becomes: bytes (N, H, W, 3) -> the network's own input -> the network -> scores of
the photo's size -> labels. All operators are those of the file's own opset.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from export.foreign import Foreign, opset_of
from export.resizes import factor
from export.writer import SCORES
from service.inference.contract import CONFIDENCE, INPUT, LABELS

PREFIX = "net/"  # prefix of the network's names, so that none equals ours
OLDEST_IR = 8  # before version 4 constants were inputs too


class Builder:
    """Collects nodes and constants; each node reads the result of the one before."""

    def __init__(self, start: str, opset: int) -> None:
        self.now = start  # the tensor that the next node reads
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def then(
        self, operator: str, *constants: NDArray[Any], result: str = "", **attributes: Any
    ) -> str:
        """Add a node that reads the tensor before it, and constants; return its result's name."""
        name = result or f"{self.now}_{operator.lower()}"
        inputs = [self.now]
        for number, value in enumerate(constants):
            inputs.append(f"{name}_{number}")
            self.constants.append(numpy_helper.from_array(value, inputs[-1]))
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.now = name
        return name

    def join(self, operator: str, first: str, second: str) -> str:
        """Add a node that reads two tensors."""
        name = f"{first}_{operator.lower()}"
        self.nodes.append(helper.make_node(operator, [first, second], [name], name=name))
        self.now = name
        return name

    def reduced(self, operator: str, *, axes_are_input_from: int) -> str:
        """Reduce the classes; the axes were an attribute before some opset."""
        if self.opset >= axes_are_input_from:
            return self.then(operator, np.array([1], np.int64))
        return self.then(operator, axes=[1])


def wrapped(foreign: Foreign, *, in_batches: bool, confidence: bool) -> onnx.ModelProto:
    """The whole graph; the scores are an additional output, unless the network has none.

    `in_batches`: the network takes several photos at once; otherwise it gets one at a time.
    """
    model = compose.add_prefix(foreign.model, PREFIX)
    opset = opset_of(model)
    before = Builder(INPUT, opset)
    _prepare(before, foreign)
    before.then("Identity", result="prepared" if not in_batches else f"{PREFIX}{foreign.input}")
    core = [*model.graph.node]
    if in_batches:
        after = Builder(f"{PREFIX}{foreign.output}", opset)
    else:
        core = [_one_by_one(foreign, model)]
        after = Builder("given", opset)
    outputs = _finish(after, foreign, confidence=confidence)
    graph = model.graph
    for field in (graph.node, graph.input, graph.output, graph.value_info):
        del field[:]
    graph.node.extend([*before.nodes, *core, *after.nodes])
    graph.initializer.extend([*before.constants, *after.constants])
    photo: list[str | int] = ["batch", *foreign.size, 3]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, photo))
    graph.output.extend(outputs)
    return _cleaned(model)


def _prepare(to: Builder, foreign: Foreign) -> None:
    """(N, H, W, 3) uint8 -> the network's input."""
    if foreign.preparation.channels == "bgr":
        to.then("Gather", np.array([2, 1, 0], np.int64), axis=3)
    factors = foreign.preparation.factors()
    if factors is not None:
        to.then("Cast", to=TensorProto.FLOAT)
        to.then("Mul", factors[0])
        to.then("Add", factors[1])
    if foreign.input_type == TensorProto.FLOAT16:
        to.then("Cast", result="half", to=TensorProto.FLOAT16)
    if foreign.layout == "nchw":
        to.then("Transpose", perm=[0, 3, 1, 2])


def _one_by_one(foreign: Foreign, model: onnx.ModelProto) -> onnx.NodeProto:
    """A Scan over the photos of a batch; the network takes one, as it was exported."""
    one, shape = Builder("photo", opset_of(model)), [3, *foreign.size]
    if foreign.layout == "nhwc":
        shape = [*foreign.size, 3]
    one.then("Reshape", np.array([1, *shape], np.int64), result=f"{PREFIX}{foreign.input}")
    end = Builder(f"{PREFIX}{foreign.output}", one.opset)
    end.then("Reshape", np.array(foreign.output_shape[1:], np.int64), result="given_for_one")
    body = helper.make_graph(
        [*one.nodes, *model.graph.node, *end.nodes],
        "one_photo",
        [helper.make_tensor_value_info("photo", foreign.input_type, shape)],
        [helper.make_tensor_value_info("given_for_one", foreign.output_type, None)],
        [*one.constants, *model.graph.initializer, *end.constants],
    )
    del model.graph.initializer[:]
    body.sparse_initializer.extend(model.graph.sparse_initializer)
    del model.graph.sparse_initializer[:]
    return helper.make_node(
        "Scan", ["prepared"], ["given"], name="photos", body=body, num_scan_inputs=1
    )


def _finish(to: Builder, foreign: Foreign, *, confidence: bool) -> list[onnx.ValueInfoProto]:
    """The network's output -> labels [, scores [, confidence]]; return the outputs."""
    shape: list[str | int] = ["batch", *foreign.size]
    labels = helper.make_tensor_value_info(LABELS, TensorProto.UINT8, shape)
    if foreign.kind == "labels":
        _enlarge_labels(to, foreign)
        return [labels]
    _scores(to, foreign)
    to.then("Identity", result=SCORES)
    to.then("ArgMax", axis=1, keepdims=0)
    to.then("Cast", result=LABELS, to=TensorProto.UINT8)
    shape.insert(1, foreign.classes)
    outputs = [labels, helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, shape)]
    if confidence:
        _confidence(to, foreign)
        sure = helper.make_tensor_value_info(
            CONFIDENCE, TensorProto.UINT8, [*shape[:1], *shape[2:]]
        )
        outputs.append(sure)
    return outputs


def _enlarge_labels(to: Builder, foreign: Foreign) -> None:
    to.then("Cast", to=TensorProto.UINT8)  # the check has found no larger number
    to.then("Reshape", np.array([-1, 1, *foreign.output_size], np.int64))
    if foreign.output_size != foreign.size:
        _resize(to, foreign, mode="nearest", centred="half_pixel")
    to.then("Reshape", np.array([-1, *foreign.size], np.int64), result=LABELS)


def _scores(to: Builder, foreign: Foreign) -> None:
    """The network's scores -> (N, K, H, W) float32."""
    if foreign.output_type != TensorProto.FLOAT:
        to.then("Cast", to=TensorProto.FLOAT)
    if foreign.class_axis == 3:
        to.then("Transpose", perm=[0, 3, 1, 2])
    if foreign.is_binary:  # so that softmax of both is the sigmoid of one
        signs = [-0.5, 0.5] if foreign.kind == "logits" else [-1.0, 1.0]
        to.then("Mul", np.array(signs, np.float32).reshape(1, 2, 1, 1), result="of_both")
        if foreign.kind == "probabilities":
            to.then("Add", np.array([1.0, 0.0], np.float32).reshape(1, 2, 1, 1))
    if foreign.output_size != foreign.size:
        centred = "align_corners" if foreign.align_corners else "half_pixel"
        _resize(to, foreign, mode="linear", centred=centred)


def _resize(to: Builder, foreign: Foreign, *, mode: str, centred: str) -> None:
    factors = map(factor, foreign.output_size, foreign.size)
    scales = np.array([1.0, 1.0, *factors], np.float32)
    unused = np.zeros(0, np.float32)  # a region, which opset 11 requires
    to.then("Resize", unused, scales, mode=mode, coordinate_transformation_mode=centred)


def _confidence(to: Builder, foreign: Foreign) -> None:
    """The probability of the label times 255."""
    to.now = SCORES
    largest = to.reduced("ReduceMax", axes_are_input_from=18)
    if foreign.kind == "logits":
        below = to.join("Sub", SCORES, largest)
        to.now = below
        to.then("Exp")
        to.reduced("ReduceSum", axes_are_input_from=13)
        to.then("Reciprocal")
    to.then("Mul", np.array(255, np.float32))
    to.then("Add", np.array(0.5, np.float32))
    to.then("Clip", np.array(0, np.float32), np.array(255, np.float32))
    to.then("Cast", to=TensorProto.UINT8)
    to.then("Reshape", np.array([-1, *foreign.size], np.int64), result=CONFIDENCE)


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's notes, which may contain private paths, in place."""
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    model.ir_version = max(model.ir_version, OLDEST_IR)
    return model
