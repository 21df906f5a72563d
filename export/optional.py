"""Compute the confidence output only when the caller asks for it.

ONNX Runtime computes every node of a file, whichever outputs a caller names. So the
nodes that only the confidence needs move into an If, whose condition is an input with
a default: a caller that passes only the image still gets labels and confidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto, helper

from service.inference.contract import CONFIDENCE, LABELS, WITH_CONFIDENCE

ZEROS = f"no_{CONFIDENCE}"


def on_request(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes confidence if the input `with_confidence` is true (the default).

    If it is false, confidence is zeros. A file without confidence is returned unchanged.
    """
    if CONFIDENCE not in {output.name for output in model.graph.output}:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    always = _behind(graph, {output.name for output in graph.output} - {CONFIDENCE})
    only = [node for node in graph.node if not always.intersection(node.output)]
    kept = [node for node in graph.node if always.intersection(node.output)]
    (output,) = (each for each in graph.output if each.name == CONFIDENCE)
    choice = helper.make_node(
        "If",
        [WITH_CONFIDENCE],
        [CONFIDENCE],
        name=CONFIDENCE,
        then_branch=_branch("certain", only, output, f"asked_{CONFIDENCE}"),
        else_branch=_branch("not_asked", _zeros(), output, ZEROS),
    )
    del graph.node[:]
    graph.node.extend([*kept, choice])
    values = [value for value in graph.value_info if value.name in always]
    del graph.value_info[:]
    graph.value_info.extend(values)
    graph.input.append(helper.make_tensor_value_info(WITH_CONFIDENCE, TensorProto.BOOL, []))
    graph.initializer.append(helper.make_tensor(WITH_CONFIDENCE, TensorProto.BOOL, [], [True]))
    return changed


def without(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose default is false, for engines that cannot pass the input."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == WITH_CONFIDENCE:
            tensor.CopyFrom(helper.make_tensor(WITH_CONFIDENCE, TensorProto.BOOL, [], [False]))
    return changed


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, also inside its branches."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from reads(inner)


def _behind(graph: onnx.GraphProto, names: Iterable[str]) -> set[str]:
    """These names and the names of everything they are computed from."""
    producers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += reads(producers[name]) if name in producers else ()
    return found


def _zeros() -> list[onnx.NodeProto]:
    nothing = helper.make_tensor("nothing", TensorProto.UINT8, [1], [0])
    return [
        helper.make_node("Shape", [LABELS], ["labels_shape"], name="labels_shape"),
        helper.make_node(
            "ConstantOfShape", ["labels_shape"], [CONFIDENCE], name=ZEROS, value=nothing
        ),
    ]


def _branch(
    name: str, nodes: Iterable[onnx.NodeProto], output: onnx.ValueInfoProto, renamed: str
) -> onnx.GraphProto:
    """A graph of these nodes; its result gets a new name, since names must be unique."""
    inner = []
    for node in nodes:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.doc_string = ""
        del copied.metadata_props[:]  # the exporter's notes
        copied.output[:] = [renamed if each == CONFIDENCE else each for each in node.output]
        inner.append(copied)
    result = onnx.ValueInfoProto()
    result.CopyFrom(output)
    result.name = renamed
    return helper.make_graph(inner, name, [], [result])
