"""Confidence where it is asked for, and no work for it where it is not.

ONNX Runtime computes every node of a file, whichever outputs a caller names. So what
only the confidence needs goes into an If, and its condition becomes an input that has
a default: a caller that gives the image alone gets labels and confidence, as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto, helper

from service.inference.contract import CONFIDENCE, LABELS, WITH_CONFIDENCE

ZEROS = f"no_{CONFIDENCE}"


def on_request(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose confidence is computed if the input `with_confidence` is true, its default.

    Else it is zeros. A file without confidence is returned as it is.
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
    """A copy that leaves the confidence out unless asked: for engines that know no defaults."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == WITH_CONFIDENCE:
            tensor.CopyFrom(helper.make_tensor(WITH_CONFIDENCE, TensorProto.BOOL, [], [False]))
    return changed


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of what a node reads, also from within its branches."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from reads(inner)


def _behind(graph: onnx.GraphProto, names: Iterable[str]) -> set[str]:
    """These names and all that they are computed from."""
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
    """A graph of these nodes, whose result has a name of its own, as all names must."""
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
