"""Read the variables of a frozen TensorFlow graph (`frozen_inference_graph.pb`).

Freezing replaces each variable by a constant of the same name. A GraphDef is a list of
nodes; a constant's numbers are an attribute `value`, a TensorProto (node_def.proto,
tensor.proto). Constants that are no variables have other last names, and are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from model.convert import tensor_proto, wire
from model.convert.accounting import ConvertError
from model.convert.wire import WireError

Array = np.ndarray[Any, Any]

VARIABLE = re.compile(
    r"/(weights|depthwise_weights|biases|gamma|beta|moving_mean|moving_variance)$"
)
# Lists of numbers in a TensorProto, by field, which stand for the raw bytes.
LISTS: dict[int, np.dtype[Any]] = {5: np.dtype("<f4"), 6: np.dtype("<f8")}


def read(path: Path) -> dict[str, Array]:
    """The variables by name; raises ConvertError."""
    variables = {}
    try:
        for number, node in wire.fields(memoryview(path.read_bytes())):
            if number == 1:
                name, value = _constant(wire.content(node))
                if value is not None and VARIABLE.search(name):
                    variables[name] = _array(name, value)
    except WireError as error:
        raise ConvertError(f"{path} is no frozen graph, or damaged: {error}") from None
    if not variables:
        raise ConvertError(f"{path} holds no variables: it is no frozen graph of research/deeplab")
    return variables


def _constant(node: memoryview) -> tuple[str, memoryview | None]:
    """The name of a node and, for a constant, its TensorProto."""
    name, operation, value = "", "", None
    for number, field in wire.fields(node):
        if number == 1:
            name = wire.text(field)
        elif number == 2:
            operation = wire.text(field)
        elif number == 5:
            key, attribute = _attribute(wire.content(field))
            value = attribute if key == "value" else value
    return name, value if operation == "Const" else None


def _attribute(pair: memoryview) -> tuple[str, memoryview | None]:
    """A node's attribute, and the tensor in it."""
    key, tensor = "", None
    for number, field in wire.fields(pair):
        if number == 1:
            key = wire.text(field)
        elif number == 2:
            for inner, value in wire.fields(wire.content(field)):
                tensor = wire.content(value) if inner == 8 else tensor
    return key, tensor


def _array(name: str, tensor: memoryview) -> Array:
    """The numbers of a TensorProto."""
    kind = tensor_proto.dtype(1)
    shape: tuple[int, ...] = ()
    raw: memoryview | bytes = b""
    listed: list[bytes] = []
    for number, field in wire.fields(tensor):
        if number == 1:
            kind = tensor_proto.dtype(wire.integer(field))
        elif number == 2:
            shape = tensor_proto.shape(wire.content(field))
        elif number == 4:
            raw = wire.content(field)
        elif number in LISTS:
            listed.append(_packed(field, LISTS[number]))
    size = tensor_proto.nbytes(kind, shape)
    found = bytes(raw) or b"".join(listed)
    if listed:  # the last number stands for all that follow
        found += found[-kind.itemsize :] * ((size - len(found)) // kind.itemsize)
    if len(found) != size:
        raise WireError(f"{name} of shape {shape} has {len(found)} bytes")
    return np.frombuffer(bytearray(found), kind).reshape(shape)


def _packed(field: int | memoryview, kind: np.dtype[Any]) -> bytes:
    """Numbers of a repeated field: packed, or one alone."""
    return field.to_bytes(kind.itemsize, "little") if isinstance(field, int) else bytes(field)
