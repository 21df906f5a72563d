"""Resizes with constant sizes, so that no node of a file of fixed size needs the host.

The tracer gives every Resize its four output sizes, the batch among them: a
Shape and a Concat per resize, which CUDA leaves to the CPU, with a copy and a
wait each way. Where height and width are known, the operator's `axes` (opset
18) name just these two, and the sizes become a constant.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

AXES = (2, 3)  # height and width of (N, C, H, W)
SIZES = 3  # the operator's fourth input


def constant_sizes(proto: onnx.ModelProto) -> None:
    """Give every Resize whose output's height and width are known constant sizes, in place."""
    graph = proto.graph
    described = (*graph.value_info, *graph.output)
    known = {value.name: value.type.tensor_type.shape for value in described}
    for node in graph.node:
        if node.op_type != "Resize" or len(node.input) <= SIZES:
            continue
        shape = known.get(node.output[0])
        if shape is None or not all(shape.dim[axis].HasField("dim_value") for axis in AXES):
            continue
        sizes = np.array([shape.dim[axis].dim_value for axis in AXES], np.int64)
        name = f"{node.output[0]}_size"
        graph.initializer.append(numpy_helper.from_array(sizes, name))
        node.input[SIZES] = name
        node.attribute.append(onnx.helper.make_attribute("axes", AXES))
    drop_unused(graph)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing reads, in place."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):  # sorted: readers come after what they read
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    for field, items in (
        (graph.node, kept[::-1]),
        (graph.initializer, [item for item in graph.initializer if item.name in needed]),
    ):
        del field[:]
        field.extend(items)
    known = {name for node in graph.node for name in node.output}
    values = [value for value in graph.value_info if value.name in known]
    del graph.value_info[:]
    graph.value_info.extend(values)
