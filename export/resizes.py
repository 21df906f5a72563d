"""Give Resize and Reshape nodes constants, so that a file of one size runs wholly on a GPU.

The tracer gives every Resize its four output sizes, including the batch: a Shape and
a Concat per resize. CUDA leaves these to the CPU, with a copy and a wait each way.
Where heights and widths are known, constant factors are enough. (Sizes for two named
axes would be simpler, but ONNX Runtime's layout optimizer for quantized graphs expects
four values.) A Reshape to several unknown sizes gets the batch from the image in the
same way. It can also copy it from its own input, which a file for photos of several
sizes needs: an output that is not requested has no image.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from service.inference.contract import INPUT

SAME = "same_batch"  # an initializer

AXES = (2, 3)  # height and width of (N, C, H, W)
SCALES, SIZES = 2, 3  # inputs of the operator


def constant_scales(proto: onnx.ModelProto) -> None:
    """Replace sizes by constant factors in every Resize of known heights and widths, in place."""
    graph = proto.graph
    described = (*graph.value_info, *graph.output)
    shapes = {value.name: value.type.tensor_type.shape for value in described}
    for node in graph.node:
        if node.op_type != "Resize" or len(node.input) <= SIZES:
            continue
        before, after = (_sides(shapes.get(name)) for name in (node.input[0], node.output[0]))
        if before is None or after is None:
            continue
        factors = [1.0, 1.0, *map(factor, before, after)]
        name = f"{node.output[0]}_scales"
        graph.initializer.append(numpy_helper.from_array(np.array(factors, np.float32), name))
        node.input[SCALES] = name
        del node.input[SIZES]
    drop_unused(graph)


def keep_batch(proto: onnx.ModelProto) -> None:
    """Let every Reshape copy the batch from its input instead of the image, in place."""
    graph = proto.graph
    batches = {node.output[0] for node in graph.node if _reads_batch(node)}
    shapes = [n for n in graph.node if n.op_type == "Concat" and n.input[0] in batches]
    for shape in shapes:
        readers = [node for node in graph.node if shape.output[0] in node.input]
        if all(node.op_type == "Reshape" for node in readers):
            shape.input[0] = SAME
            for reader in readers:
                del reader.attribute[:]  # without allowzero 0 stands for the input's own size
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), SAME))
    drop_unused(graph)


def _reads_batch(node: onnx.NodeProto) -> bool:
    numbers = {each.name: each.i for each in node.attribute}
    return node.op_type == "Shape" and INPUT in node.input and numbers == {"start": 0, "end": 1}


def factor(before: int, after: int) -> float:
    """The float32 nearest to after / before for which floor(before * factor) is `after`.

    Some implementations multiply in double precision, where rounding does not help.
    """
    value = np.float32(after / before)
    if before * float(value) < after:
        value = np.nextafter(value, np.float32(np.inf))
    return float(value)


def _sides(shape: onnx.TensorShapeProto | None) -> tuple[int, int] | None:
    if shape is None or not all(shape.dim[axis].HasField("dim_value") for axis in AXES):
        return None
    return shape.dim[2].dim_value, shape.dim[3].dim_value


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
