"""Write checkpoints in TensorFlow's format version 2, in any size that a test needs.

Files that TensorFlow itself wrote are in `tensorflow/`. The same reader reads both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

DATA_TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
MAGIC = bytes.fromhex("57fb808b247547db")


def write(
    prefix: Path, variables: Mapping[str, Any], *, shards: int = 1, pairs_in_a_block: int = 64
) -> None:
    """Write PREFIX.index and PREFIX.data-*; variables go to the data files in turn."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    contents = [bytearray() for _ in range(shards)]
    pairs = [(b"", tag(1, shards))]
    for number, name in enumerate(sorted(variables)):
        array = np.asarray(variables[name])
        shard = number % shards
        pairs.append((name.encode(), entry(array, shard, len(contents[shard]))))
        contents[shard] += array.tobytes()
    for shard, content in enumerate(contents):
        path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        path.write_bytes(content)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(pairs, pairs_in_a_block))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tag(number: int, value: int | bytes) -> bytes:
    """One field of a message; zeros are left out, as protobuf does."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if value else b""


def masked(content: bytes) -> bytes:
    checksum = int(google_crc32c.value(content))
    rotated = ((checksum >> 15) | (checksum << 17)) % 2**32
    return ((rotated + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def entry(array: np.ndarray[Any, Any], shard: int, offset: int) -> bytes:
    shape = b"".join(tag(2, tag(1, side)) for side in array.shape)
    content = array.tobytes()
    fields = tag(1, DATA_TYPES[str(array.dtype)]) + tag(2, shape) + tag(3, shard)
    return fields + tag(4, offset) + tag(5, len(content)) + varint(6 << 3 | 5) + masked(content)


def table(pairs: list[tuple[bytes, bytes]], pairs_in_a_block: int) -> bytes:
    """A sorted string table without compression."""
    out = bytearray()
    handles = []
    for start in range(0, len(pairs), pairs_in_a_block):
        some = pairs[start : start + pairs_in_a_block]
        handles.append((some[-1][0], place(out, block(some))))
    metadata = place(out, block([]))
    index = place(out, block(handles))
    return bytes(out + (metadata + index).ljust(40, b"\0") + MAGIC)


def place(out: bytearray, content: bytes) -> bytes:
    """Append a block and its trailer; returns its handle."""
    handle = varint(len(out)) + varint(len(content))
    out += content + b"\0" + masked(content + b"\0")
    return handle


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Store each key without the start it shares with the previous key; restart at every 16th."""
    out, restarts = bytearray(), []
    previous = b""
    for number, (key, value) in enumerate(pairs):
        shared = 0 if number % 16 == 0 else len(common(previous, key))
        if number % 16 == 0:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        previous = key
    restarts = restarts or [0]
    tail = b"".join(each.to_bytes(4, "little") for each in [*restarts, len(restarts)])
    return bytes(out + tail)


def common(first: bytes, second: bytes) -> bytes:
    def equal() -> Iterator[int]:
        for one, other in zip(first, second, strict=False):
            if one != other:
                return
            yield one

    return bytes(equal())
