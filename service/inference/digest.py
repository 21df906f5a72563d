"""The digests that an exported file carries of its graph and of its contract.

The graph's is of the serialised `ModelProto` without its metadata, which holds the
digest. Of protobuf's encoding (https://protobuf.dev/programming-guides/encoding) only
the outermost level is read here: the service works without the onnx package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

METADATA_PROPS = 14  # the field's number in onnx.proto
VARINT, LENGTH_DELIMITED = 0, 2  # the wire types that ModelProto has


def graph_digest(model: bytes) -> str:
    """SHA-256 of a model file without its metadata."""
    digest = hashlib.sha256()
    view = memoryview(model)
    for number, start, end in _fields(model):
        if number != METADATA_PROPS:
            digest.update(view[start:end])
    return digest.hexdigest()


def contract_digest(text: str) -> str:
    """SHA-256 of a contract, given as JSON, without the field that carries the digest itself."""
    fields = json.loads(text) | {"contract_sha256": None}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of every outermost field; what is no such field ends the list."""
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
