"""Compute the confidence output only when the caller asks for it, without an `If`.

ONNX Runtime computes every node of a file, whichever outputs a caller names. So the scores
pass through a Slice along the batch before the confidence is computed from them. An input
with a default sets where the Slice ends: after all images or before the first, and then
the remaining nodes have nothing to compute. OpenVINO 2026.4 cannot read a file with an `If`.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

from service.inference.contract import CONFIDENCE, WITH_CONFIDENCE

ALL, NONE, LAST = "every_image", "no_image", f"images_{WITH_CONFIDENCE}"
MANY = 2**31 - 1  # more images than a batch has, in 32 bits for engines that narrow to them


def on_request(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes confidence if the input `with_confidence` is true (the default).

    If it is false, confidence has no images, (0, H, W). A file without confidence is returned
    unchanged.
    """
    if CONFIDENCE not in {output.name for output in model.graph.output}:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    always = _behind(graph, {output.name for output in graph.output} - {CONFIDENCE})
    only = [node for node in graph.node if not always.intersection(node.output)]
    kept = [node for node in graph.node if always.intersection(node.output)]
    shared = _shared(graph, kept, only)
    for node in only:
        node.input[:] = [f"{name}_asked" if name in shared else name for name in node.input]
    del graph.node[:]
    graph.node.extend([*kept, *_slices(shared), *only])
    graph.initializer.extend(
        [
            helper.make_tensor(WITH_CONFIDENCE, TensorProto.BOOL, [], [True]),
            helper.make_tensor(ALL, TensorProto.INT64, [1], [MANY]),
            helper.make_tensor(NONE, TensorProto.INT64, [1], [0]),
        ]
    )
    graph.input.append(helper.make_tensor_value_info(WITH_CONFIDENCE, TensorProto.BOOL, []))
    _free_batch(graph, always)
    return changed


def _behind(graph: onnx.GraphProto, names: Iterable[str]) -> set[str]:
    """These names and the names of everything they are computed from."""
    producers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += producers[name].input if name in producers else ()
    return found


def _shared(
    graph: onnx.GraphProto, kept: Iterable[onnx.NodeProto], only: Iterable[onnx.NodeProto]
) -> list[str]:
    """Tensors that both labels and confidence are computed from, without shapes (int64)."""
    computed = {name for node in kept for name in node.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    read = dict.fromkeys(name for node in only for name in node.input)  # in order
    return [name for name in read if name in computed and kinds.get(name) != TensorProto.INT64]


def _slices(names: Iterable[str]) -> list[onnx.NodeProto]:
    """Nodes that keep all images of each tensor, or no image if `with_confidence` is false."""
    choice = helper.make_node("Where", [WITH_CONFIDENCE, ALL, NONE], [LAST], name=LAST)
    slices = [
        helper.make_node("Slice", [name, NONE, LAST, NONE], [f"{name}_asked"], name=f"{name}_asked")
        for name in names  # from image 0, along axis 0
    ]
    return [choice, *slices]


def _free_batch(graph: onnx.GraphProto, always: set[str]) -> None:
    """Declare that the confidence's batch may differ from the image's, in place."""
    values = [value for value in graph.value_info if value.name in always]
    del graph.value_info[:]
    graph.value_info.extend(values)
    (output,) = (each for each in graph.output if each.name == CONFIDENCE)
    output.type.tensor_type.shape.dim[0].dim_param = f"{CONFIDENCE}_batch"
