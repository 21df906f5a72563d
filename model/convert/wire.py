"""Read Protocol Buffers without generated classes: the fields of a message, one by one.

TensorFlow describes its checkpoints and graphs with messages of a few fields each. A
reader of the encoding itself (protobuf.dev/programming-guides/encoding) needs neither
TensorFlow nor its schemas. Every length is checked against the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
LONGEST_VARINT = 10  # bytes of 7 bits, for 64 bits


class WireError(ValueError):
    """The bytes are no such message, or end too early."""


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """An unsigned integer of 7 bits a byte, lowest first, and the position after it."""
    value = 0
    for index, byte in enumerate(data[position : position + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise WireError("a number does not end")


def piece(data: memoryview, position: int, size: int) -> memoryview:
    """`size` bytes from a position on; raises WireError where there are fewer."""
    if position < 0 or size < 0 or position + size > len(data):
        raise WireError(f"{size} bytes are wanted at {position}, the data has {len(data)}")
    return data[position : position + size]


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value): an integer, or the bytes of a text, message or packed list."""
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = varint(message, position)
            yield number, value
            continue
        if kind == BYTES:
            size, position = varint(message, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise WireError(f"field {number} has the unknown wire type {kind}")
        content = piece(message, position, size)
        position += size
        yield number, content if kind == BYTES else int.from_bytes(content, "little")


def signed(value: int | memoryview) -> int:
    """A varint as the int64 that it encodes."""
    value = integer(value)
    return value - (1 << 64) if value >= 1 << 63 else value


def integer(value: int | memoryview) -> int:
    """A field that must be a number; raises WireError."""
    if not isinstance(value, int):
        raise WireError("a number is expected, and bytes are there")
    return value


def content(value: int | memoryview) -> memoryview:
    """A field that must be bytes; raises WireError."""
    if isinstance(value, int):
        raise WireError("bytes are expected, and a number is there")
    return value


def text(value: int | memoryview) -> str:
    """A field that must be UTF-8 text; raises WireError."""
    try:
        return bytes(content(value)).decode()
    except UnicodeDecodeError as error:
        raise WireError(f"a name is not UTF-8: {error}") from None
