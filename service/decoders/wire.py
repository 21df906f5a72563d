"""Messages between the service and its decoder processes, over a Unix socket.

A message is a JSON object, accompanied by the descriptor of shared memory with arrays and
followed by the bytes of a photo, if it has some. Nothing is unpickled: a process that a hostile
photo has taken over could send anything.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]
Fields = dict[str, Any]

LENGTHS = struct.Struct("<IQ")  # of the JSON, of the bytes after it
MAX_JSON = 1 << 20
ALIGNED = 64  # bytes: where an array may start


@dataclass(frozen=True)
class Message:
    """A message from one side: an object, arrays in shared memory, bytes."""

    fields: Fields
    arrays: list[Array] = field(default_factory=list)
    data: bytes = b""


def send(
    to: socket.socket, fields: Fields, arrays: Sequence[Array] = (), data: bytes = b""
) -> None:
    """Send an object, arrays, which are copied once, and bytes.

    Raises OSError if the other side has ended.
    """
    shapes = [array.shape for array in arrays]
    text = json.dumps({**fields, "shapes": shapes}).encode()
    head = LENGTHS.pack(len(text), len(data)) + text
    if not arrays:
        to.sendall(head)
    else:
        _send_with_memory(to, head, arrays, shapes)
    to.sendall(data)


def _send_with_memory(
    to: socket.socket, head: bytes, arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]]
) -> None:
    import fcntl  # noqa: PLC0415 - Windows has none, and the service imports this module there

    memory = os.memfd_create("photo", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        starts, size = _layout(shapes)
        os.ftruncate(memory, size)
        for start, array in zip(starts, arrays, strict=True):
            _write(memory, array, start)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        sent = socket.send_fds(to, [head], [memory])
        to.sendall(head[sent:])
    finally:
        os.close(memory)


def _write(memory: int, array: Array, start: int) -> None:
    """Write an array without mapping the memory, which would cost a page fault for every 4 KB."""
    left = np.ascontiguousarray(array).data.cast("B")
    while left:
        written = os.pwrite(memory, left, start)
        left, start = left[written:], start + written


def receive(source: socket.socket, *, max_data: int) -> Message:
    """Return the next message; its arrays are read-only and not copied.

    Raises EOFError if the other side has ended, and ValueError or OSError for a wrong message.
    """
    head, memories, _, _ = socket.recv_fds(source, LENGTHS.size, 1)
    try:
        head += _exactly(source, LENGTHS.size - len(head)) if head else b""
        if not head:
            raise EOFError("the other side has ended")
        of_text, of_data = LENGTHS.unpack(head)
        if of_text > MAX_JSON or of_data > max_data:
            raise ValueError("a message of a decoder is too long")
        fields: Fields = json.loads(_exactly(source, of_text))
        data = _exactly(source, of_data)
        shapes = [tuple(map(int, shape)) for shape in fields.pop("shapes")]
        return Message(fields, _mapped(memories, shapes) if shapes else [], data)
    finally:
        for memory in memories:
            os.close(memory)


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = source.recv(size, socket.MSG_WAITALL)
        if not part:
            raise EOFError("the other side has ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _mapped(memories: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    import fcntl  # noqa: PLC0415 - as above

    starts, size = _layout(shapes)
    # The kernel would end the service if a decoder shrank memory that the service reads.
    if not memories or not fcntl.fcntl(memories[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise ValueError("a decoder sent no shared memory, or some that can still shrink")
    if os.fstat(memories[0]).st_size != size:
        raise ValueError("a decoder sent shared memory of a wrong size")
    if not size:
        return [np.empty(shape, np.uint8) for shape in shapes]
    shared = mmap.mmap(memories[0], size, prot=mmap.PROT_READ)
    return [_view(shared, *each) for each in zip(starts, shapes, strict=True)]


def _layout(shapes: Sequence[tuple[int, ...]]) -> tuple[list[int], int]:
    """Return where each array starts, and the total size."""
    starts, size = [], 0
    for shape in shapes:
        starts.append(size)
        size += -(-math.prod(shape) // ALIGNED) * ALIGNED
    return starts, size


def _view(shared: mmap.mmap, start: int, shape: tuple[int, ...]) -> Array:
    flat = np.frombuffer(shared, np.uint8, math.prod(shape), start)
    return flat.reshape(shape)
