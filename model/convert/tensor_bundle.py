"""Read a TensorFlow checkpoint (`model.ckpt`, version 2) without TensorFlow.

A checkpoint is PREFIX.index and PREFIX.data-00000-of-0000N. The index is a sorted
string table, LevelDB's format: blocks of key-value pairs, an index block that leads to
them, a footer of 48 bytes. Its values are BundleEntryProto messages: type, shape, data
file, offset, size and checksum of each variable (tensor_bundle.proto). The data files
hold the raw numbers. Every block's and every variable's checksum is compared: a bit
that flipped would otherwise only show as a worse mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from model.convert import tensor_proto, wire
from model.convert.accounting import ConvertError
from model.convert.wire import WireError

Array = np.ndarray[Any, Any]

MAGIC = 0xDB4775248B80FB57  # of LevelDB's tables
FOOTER = 48  # bytes: two block handles, padding, the magic number
TRAILER = 5  # bytes after a block: how it is compressed, checksum
MASK_DELTA = 0xA282EAD8  # LevelDB stores checksums rotated, plus this
SNAPPY = 1
SLICE = b"\0"  # begins the key of a part of a variable
LONGEST_INDEX = 64_000_000  # bytes; the largest published one has some 80,000


class Entry(NamedTuple):
    """The type, shape and place of a variable."""

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


def read(prefix: Path) -> dict[str, Array]:
    """All numeric variables by name; raises ConvertError for anything that does not fit."""
    index = index_of(prefix)
    try:
        shards, entries = _entries(index)
        files = [_shard(prefix, number, shards) for number in range(shards)]
        return {name: _tensor(name, entry, files) for name, entry in entries.items()}
    except WireError as error:
        raise ConvertError(f"{index} is no checkpoint's index, or damaged: {error}") from None


def index_of(prefix: Path) -> Path:
    """PREFIX.index."""
    return prefix.with_name(f"{prefix.name}.index")


def _shard(prefix: Path, number: int, shards: int) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{shards:05d}")


def _entries(index: Path) -> tuple[int, dict[str, Entry]]:
    """The number of data files, and each variable's place."""
    if index.stat().st_size > LONGEST_INDEX:
        raise WireError(f"it has {index.stat().st_size / 1e6:.0f} MB")
    shards = 0
    entries: dict[str, Entry] = {}
    for key, value in _table(memoryview(index.read_bytes())):
        if not key:
            shards = _header(value)
            continue
        if key.startswith(SLICE):  # the whole variable has an entry too, which says so
            continue
        name = wire.text(memoryview(key))
        entry = _entry(name, value)
        if entry is not None:
            entries[name] = entry
    if shards < 1:
        raise WireError("its header is missing")
    for name, entry in entries.items():
        if entry.shard >= shards:
            raise WireError(f"{name} lies in data file {entry.shard} of {shards}")
    return shards, entries


def _table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a sorted string table."""
    if len(data) < FOOTER or int.from_bytes(data[-8:], "little") != MAGIC:
        raise WireError("it does not end as a table of TensorFlow's version 2 does")
    footer = data[-FOOTER:]
    _, position = wire.varint(footer, 0)  # the index of blocks of metadata, of which there are none
    _, position = wire.varint(footer, position)
    for _, handle in _block(data, footer, position):
        yield from _block(data, handle, 0)


def _block(
    data: memoryview, handle: memoryview, position: int
) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of the block that a handle (offset, size) points to."""
    offset, position = wire.varint(handle, position)
    size, _ = wire.varint(handle, position)
    whole = wire.piece(data, offset, size + TRAILER)
    if _masked(whole[: size + 1]) != int.from_bytes(whole[size + 1 :], "little"):
        raise WireError("a checksum is wrong")
    if whole[size] == SNAPPY:
        raise WireError("it is compressed, as TensorFlow wrote before version 1.2")
    restarts = int.from_bytes(wire.piece(whole, size - 4, 4), "little")
    yield from _pairs(wire.piece(whole, 0, size - 4 - 4 * restarts))


def _pairs(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values; a key says how many bytes it shares with the one before."""
    key = b""
    position = 0
    while position < len(block):
        shared, position = wire.varint(block, position)
        unshared, position = wire.varint(block, position)
        size, position = wire.varint(block, position)
        if shared > len(key):
            raise WireError("a key is cut off")
        key = key[:shared] + bytes(wire.piece(block, position, unshared))
        position += unshared
        yield key, wire.piece(block, position, size)
        position += size


def _header(message: memoryview) -> int:
    """The number of data files in a BundleHeaderProto."""
    shards = 0
    for number, value in wire.fields(message):
        if number == 1:
            shards = wire.integer(value)
        elif number == 2 and value:
            raise WireError("its numbers are big-endian")
    return shards


def _entry(name: str, message: memoryview) -> Entry | None:
    """A BundleEntryProto; None for texts, which describe Python objects of TensorFlow 2."""
    number_of = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
    found = dict.fromkeys(number_of.values(), 0)  # protobuf leaves zeros out
    shape: tuple[int, ...] = ()
    for number, value in wire.fields(message):
        if number in number_of:
            found[number_of[number]] = wire.integer(value)
        elif number == 2:
            shape = tensor_proto.shape(wire.content(value))
        elif number == 7:
            raise WireError(f"{name} is cut into slices (a partitioned variable)")
    if found["dtype"] == tensor_proto.STRING:
        return None
    kind = tensor_proto.dtype(found["dtype"])
    if tensor_proto.nbytes(kind, shape) != found["size"]:
        raise WireError(f"{name} of shape {shape} has {found['size']} bytes")
    return Entry(kind, shape, found["shard"], found["offset"], found["size"], found["checksum"])


def _tensor(name: str, entry: Entry, files: list[Path]) -> Array:
    """Read one variable and compare its checksum; raises ConvertError."""
    file = files[entry.shard]
    if not file.is_file():
        raise ConvertError(f"{file} is missing: a checkpoint is its .index and all .data files")
    if entry.offset + entry.size > file.stat().st_size:
        raise ConvertError(f"{file} ends before {name}: it is cut off, copy it again")
    content = bytearray(entry.size)
    with file.open("rb") as stream:
        stream.seek(entry.offset)
        stream.readinto(content)
    if _masked(memoryview(content)) != entry.checksum:
        raise ConvertError(f"{file} is damaged: the checksum of {name} is wrong, copy it again")
    return np.frombuffer(content, entry.kind).reshape(entry.shape)


def _masked(content: memoryview) -> int:
    """CRC-32C as LevelDB stores it."""
    checksum = int(google_crc32c.value(bytes(content)))
    rotated = (checksum >> 15 | checksum << 17) & 0xFFFFFFFF
    return (rotated + MASK_DELTA) & 0xFFFFFFFF
