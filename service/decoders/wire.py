"""Messages between the service and its decoder processes, over a Unix socket.

A message is a JSON object, followed by the bytes of a photo or accompanied by the descriptor
of shared memory with arrays. Nothing is unpickled: a process that a hostile photo has taken
over could send anything.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from io import BufferedReader
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]
Fields = dict[str, Any]

LENGTHS = struct.Struct("<IQ")  # of the JSON, of the bytes after it
MAX_JSON = 1 << 20
ALIGNED = 64  # bytes: where an array may start


def send_bytes(to: socket.socket, fields: Fields, data: bytes) -> None:
    """Send an object and bytes; raises OSError if the other side has ended."""
    text = json.dumps(fields).encode()
    to.sendall(LENGTHS.pack(len(text), len(data)) + text)
    to.sendall(data)


def receive_bytes(source: BufferedReader) -> tuple[Fields, bytes] | None:
    """Return the next object and its bytes, or None if the other side has ended."""
    head = source.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    of_text, of_data = LENGTHS.unpack(head)
    text, data = source.read(of_text), source.read(of_data)
    if len(text) < of_text or len(data) < of_data:
        return None
    return json.loads(text), data


def send_arrays(to: socket.socket, fields: Fields, arrays: Sequence[Array]) -> None:
    """Send an object and arrays, which are copied once, into shared memory."""
    shapes = [array.shape for array in arrays]
    text = json.dumps({**fields, "shapes": shapes}).encode()
    head = LENGTHS.pack(len(text), 0) + text
    if not arrays:
        to.sendall(head)
        return
    memory = os.memfd_create("photo")
    try:
        starts, size = _layout(shapes)
        os.ftruncate(memory, size)
        for start, array in zip(starts, arrays, strict=True):
            _write(memory, array, start)
        sent = socket.send_fds(to, [head], [memory])
        to.sendall(head[sent:])
    finally:
        os.close(memory)


def _write(memory: int, array: Array, start: int) -> None:
    """Write an array; a mapping would cost a page fault for every 4 KB."""
    left = np.ascontiguousarray(array).data.cast("B")
    while left:
        written = os.pwrite(memory, left, start)
        left, start = left[written:], start + written


def receive_arrays(source: socket.socket) -> tuple[Fields, list[Array]]:
    """Return the next object and its arrays, read-only and not copied.

    Raises EOFError if the other side has ended, and ValueError for a message that is wrong.
    """
    data, memories, _, _ = socket.recv_fds(source, 65536, 1)
    try:
        while len(data) < LENGTHS.size or len(data) < LENGTHS.size + LENGTHS.unpack_from(data)[0]:
            if len(data) > MAX_JSON:
                raise ValueError("a message of a decoder is too long")
            more = source.recv(65536) if data else b""
            if not more:
                raise EOFError("the decoder has ended")
            data += more
        fields: Fields = json.loads(data[LENGTHS.size :])
        shapes = [tuple(map(int, shape)) for shape in fields.pop("shapes")]
        if not shapes:
            return fields, []
        starts, size = _layout(shapes)
        if not memories or os.fstat(memories[0]).st_size != size:
            raise ValueError("a decoder sent shared memory of a wrong size")
        shared = mmap.mmap(memories[0], size, prot=mmap.PROT_READ)
        return fields, [_view(shared, *each) for each in zip(starts, shapes, strict=True)]
    finally:
        for memory in memories:
            os.close(memory)


def _layout(shapes: Sequence[tuple[int, ...]]) -> tuple[list[int], int]:
    """Return where each array starts, and the size of them all."""
    starts, size = [], 0
    for shape in shapes:
        starts.append(size)
        size += -(-math.prod(shape) // ALIGNED) * ALIGNED
    return starts, size


def _view(shared: mmap.mmap, start: int, shape: tuple[int, ...]) -> Array:
    flat = np.frombuffer(shared, np.uint8, math.prod(shape), start)
    return flat.reshape(shape)
