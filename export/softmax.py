"""Replace softmax over the classes by the operators that it consists of.

ONNX Runtime's CPU kernel works along the last axis and transposes other inputs: at
513x513 with 21 classes this took ten times as long as maximum, difference,
exponential, sum and quotient one by one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

CLASSES = 1  # axis of (N, K, H, W)
AXES = "classes_axis"


def spread_softmax(proto: onnx.ModelProto) -> None:
    """Replace every Softmax over axis 1 by its parts, in place."""
    nodes = list(proto.graph.node)
    if not any(map(_over_classes, nodes)):
        return
    axes = numpy_helper.from_array(np.array([CLASSES], np.int64), AXES)
    proto.graph.initializer.append(axes)
    del proto.graph.node[:]
    for node in nodes:
        proto.graph.node.extend(_parts(node) if _over_classes(node) else [node])


def _over_classes(node: onnx.NodeProto) -> bool:
    return node.op_type == "Softmax" and any(
        attribute.name == "axis" and attribute.i == CLASSES for attribute in node.attribute
    )


def _parts(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    (logits,), (probabilities,) = node.input, node.output
    largest, below, powers, total = (
        f"{probabilities}_{part}" for part in ("largest", "below", "powers", "total")
    )
    steps = [
        ("ReduceMax", [logits, AXES], largest),
        ("Sub", [logits, largest], below),  # at most 0: the exponential cannot overflow
        ("Exp", [below], powers),
        ("ReduceSum", [powers, AXES], total),
        ("Div", [powers, total], probabilities),
    ]
    return [
        helper.make_node(operator, inputs, [output], name=f"{node.name}_{operator}")
        for operator, inputs, output in steps
    ]
