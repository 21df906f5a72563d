"""Compute confidence and probabilities only when the caller asks for them, without an `If`.

ONNX Runtime computes every node of a file, whichever outputs a caller names. So the scores
pass through a Slice along the batch before such an output is computed from them. An input
with a default sets where the Slice ends: after all images or before the first, and then
the remaining nodes have nothing to compute. OpenVINO 2026.4 cannot read a file with an `If`.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

from service.inference.contract import OPTIONAL

ALL, NONE = "every_image", "no_image"
MANY = 2**31 - 1  # more images than a batch has, in 32 bits for engines that narrow to them


def on_request(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes an optional output if its input is true (the default).

    The inputs are `with_confidence` and `with_probabilities`. If one is false, its output has no
    images, (0, ...). A file without such outputs is returned unchanged.
    """
    for output, flag in OPTIONAL.items():
        if output in {each.name for each in model.graph.output}:
            model = _on_request(model, output, flag)
    return model


def _on_request(model: onnx.ModelProto, optional: str, flag: str) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    always = _behind(graph, {output.name for output in graph.output} - {optional})
    only = [node for node in graph.node if not always.intersection(node.output)]
    kept = [node for node in graph.node if always.intersection(node.output)]
    shared = _shared(graph, kept, only)
    for node in only:
        node.input[:] = [_asked(name, flag) if name in shared else name for name in node.input]
    del graph.node[:]
    graph.node.extend([*kept, *_slices(shared, flag), *only])
    constants = [
        helper.make_tensor(flag, TensorProto.BOOL, [], [True]),
        helper.make_tensor(ALL, TensorProto.INT64, [1], [MANY]),
        helper.make_tensor(NONE, TensorProto.INT64, [1], [0]),
    ]
    known = {each.name for each in graph.initializer}
    graph.initializer.extend(each for each in constants if each.name not in known)
    graph.input.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, []))
    _free_batch(graph, always, optional)
    return changed


def _asked(name: str, flag: str) -> str:
    return f"{name}_{flag}"


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
    """Tensors that both kinds of outputs are computed from, without shapes (int64)."""
    computed = {name for node in kept for name in node.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    read = dict.fromkeys(name for node in only for name in node.input)  # in order
    return [name for name in read if name in computed and kinds.get(name) != TensorProto.INT64]


def _slices(names: Iterable[str], flag: str) -> list[onnx.NodeProto]:
    """Nodes that keep all images of each tensor, or none if the input `flag` is false."""
    last = f"images_{flag}"
    choice = helper.make_node("Where", [flag, ALL, NONE], [last], name=last)
    slices = [
        helper.make_node(
            "Slice", [name, NONE, last, NONE], [_asked(name, flag)], name=_asked(name, flag)
        )
        for name in names  # from image 0, along axis 0
    ]
    return [choice, *slices]


def _free_batch(graph: onnx.GraphProto, always: set[str], optional: str) -> None:
    """Declare that an optional output's batch may differ from the image's, in place."""
    values = [value for value in graph.value_info if value.name in always]
    del graph.value_info[:]
    graph.value_info.extend(values)
    (output,) = (each for each in graph.output if each.name == optional)
    output.type.tensor_type.shape.dim[0].dim_param = f"{optional}_batch"
