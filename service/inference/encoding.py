"""Read the outer levels of an ONNX file's encoding, as the service does without onnx.

The format is https://protobuf.dev/programming-guides/encoding, the fields' numbers are
those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

MODEL_GRAPH, MODEL_METADATA = 7, 14
GRAPH_INPUT, VALUE_NAME = 11, 1
ENTRY_KEY, ENTRY_VALUE = 1, 2
VARINT, LENGTH_DELIMITED = 0, 2  # the wire types that these messages have


def without_input(model: bytes, name: str) -> bytes:
    """Turn an input that has a default into a constant with that value."""
    view, parts = memoryview(model), list[bytes]()
    for number, start, end in fields(model):
        if number != MODEL_GRAPH:
            parts.append(bytes(view[start:end]))
            continue
        graph = _content(model, start, end)
        kept = [
            graph[at:until]
            for field, at, until in fields(graph)
            if field != GRAPH_INPUT or _name(_content(graph, at, until)) != name.encode()
        ]
        parts.append(_message(MODEL_GRAPH, b"".join(kept)))
    return b"".join(parts)


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
