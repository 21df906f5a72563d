"""Read the outer levels of an ONNX file's encoding, as the service does without onnx.

The format is https://protobuf.dev/programming-guides/encoding, the fields' numbers are
those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

MODEL_GRAPH, MODEL_METADATA = 7, 14
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, VALUE_NAME = 1, 5, 11, 1
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_NUMBER = 1, 3
TENSOR_SIDES, TENSOR_TYPE, TENSOR_NUMBERS, TENSOR_NAME, INT64 = 1, 2, 7, 8, 7
ENTRY_KEY, ENTRY_VALUE = 1, 2
VARINT, LENGTH_DELIMITED = 0, 2  # the wire types that these messages have


def without_input(model: bytes, name: str) -> bytes:
    """Turn an input that has a default into a constant with that value."""

    def changed(field: int, content: bytes) -> bytes | None:
        return b"" if field == GRAPH_INPUT and _name(content) == name.encode() else None

    return _with_graph(model, changed)


def of_one_size(model: bytes, image: str, size: tuple[int, int]) -> bytes:
    """Replace the height and the width of an input (N, H, W, C) by constants.

    It replaces the nodes that read one of them, so that ONNX Runtime can compute in advance what
    depends on them: it cannot do so for a shape whose batch is unknown.
    """

    def changed(field: int, content: bytes) -> bytes | None:
        if field != GRAPH_NODE:
            return None
        node = [(number, _content(content, *where)) for number, *where in fields(content)]
        if (NODE_OPERATOR, b"Shape") not in node or (NODE_INPUT, image.encode()) not in node:
            return None
        numbers = dict(_attribute(value) for number, value in node if number == NODE_ATTRIBUTE)
        axis = numbers.get(b"start", 0)
        if axis not in {1, 2} or numbers.get(b"end") != axis + 1:
            return None
        (output,) = (value for number, value in node if number == NODE_OUTPUT)
        return _message(GRAPH_INITIALIZER, _vector(output, size[axis - 1]))

    return _with_graph(model, changed)


def _with_graph(model: bytes, changed: Callable[[int, bytes], bytes | None]) -> bytes:
    """Replace fields of the graph by what `changed` returns for number and content; None: keep."""
    view, parts = memoryview(model), list[bytes]()
    for number, start, end in fields(model):
        if number != MODEL_GRAPH:
            parts.append(bytes(view[start:end]))
            continue
        graph = _content(model, start, end)
        kept = []
        for field, at, until in fields(graph):
            new = None
            if field in {GRAPH_NODE, GRAPH_INPUT}:
                new = changed(field, _content(graph, at, until))
            kept.append(graph[at:until] if new is None else new)
        parts.append(_message(MODEL_GRAPH, b"".join(kept)))
    return b"".join(parts)


def _attribute(message: bytes) -> tuple[bytes, int]:
    """Name and number of a node's attribute."""
    name, number = b"", 0
    for field, start, end in fields(message):
        if field == ATTRIBUTE_NAME:
            name = _content(message, start, end)
        elif field == ATTRIBUTE_NUMBER:
            _, at = _varint(message, start)
            number, _ = _varint(message, at)
    return name, number


def _vector(name: bytes, value: int) -> bytes:
    """A tensor with one whole number."""
    return b"".join(
        [
            _number(TENSOR_SIDES, 1),
            _number(TENSOR_TYPE, INT64),
            _message(TENSOR_NUMBERS, _encoded(value)),
            _message(TENSOR_NAME, name),
        ]
    )


def _number(number: int, value: int) -> bytes:
    """A field that holds a number."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def metadata(model: bytes) -> dict[str, str]:
    """The file's metadata: key -> value."""
    found = {}
    for number, start, end in fields(model):
        if number == MODEL_METADATA:
            entry = _content(model, start, end)
            parts = {field: _content(entry, *where) for field, *where in fields(entry)}
            key, value = parts.get(ENTRY_KEY, b""), parts.get(ENTRY_VALUE, b"")
            found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return found


def _name(value: bytes) -> bytes | None:
    for number, start, end in fields(value):
        if number == VALUE_NAME:
            return _content(value, start, end)
    return None


def _content(message: bytes, start: int, end: int) -> bytes:
    """The content of a length-delimited field."""
    _, at = _varint(message, start)  # the tag
    _, at = _varint(message, at)  # the length
    return message[at:end]


def _message(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return _encoded(number << 3 | LENGTH_DELIMITED) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    """A number, seven bits in each byte, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of every field of a message; stops at bytes that are no field."""
    start = 0
    while start < len(message):
        tag, at = _varint(message, start)
        if tag & 7 == VARINT:
            _, end = _varint(message, at)
        elif tag & 7 == LENGTH_DELIMITED:
            length, at = _varint(message, at)
            end = at + length
        else:
            end = len(message)
        yield tag >> 3, start, end
        start = end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, seven bits in each, and where it ends."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if byte < 0x80:
            break
    return value, at
