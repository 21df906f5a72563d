"""Messages between the service and its decoders, which a hostile photo may have taken over."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from service.decoders import nursery, wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decoder processes need Linux")

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


def head(fields: wire.Fields, data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return wire.LENGTHS.pack(len(text), len(data)) + text


def test_a_message_arrives_as_it_was_sent(ends: Ends) -> None:
    """Arrays of several shapes, an empty one too, and bytes."""
    ours, theirs = ends
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (7,), (0,), (2, 3, 4)]
    arrays = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    wire.send(theirs, {"a": 1}, arrays, b"data")
    message = wire.receive(ours, max_data=4)
    assert (message.fields, message.data) == ({"a": 1}, b"data")
    for found, sent in zip(message.arrays, arrays, strict=True):
        assert np.array_equal(found, sent)
        assert not found.flags.writeable or not found.size


def test_empty_arrays_alone_arrive(ends: Ends) -> None:
    """Such as an encoded photo of no bytes."""
    ours, theirs = ends
    wire.send(theirs, {}, [np.empty(0, np.uint8)])
    (found,) = wire.receive(ours, max_data=0).arrays
    assert found.shape == (0,)


def test_memory_that_was_sent_cannot_shrink(ends: Ends) -> None:
    """Reading beyond its end would kill the reader with SIGBUS."""
    ours, theirs = ends
    wire.send(theirs, {}, [np.zeros(9, np.uint8)])
    _, (memory,), _, _ = socket.recv_fds(ours, 65536, 1)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 0)
    finally:
        os.close(memory)


@pytest.mark.parametrize("sealing", [0, os.MFD_ALLOW_SEALING if sys.platform == "linux" else 0])
def test_memory_that_could_shrink_is_refused(sealing: int, ends: Ends) -> None:
    ours, theirs = ends
    memory = os.memfd_create("photo", os.MFD_CLOEXEC | sealing)
    try:
        os.ftruncate(memory, 64)
        socket.send_fds(theirs, [head({"shapes": [[64]]})], [memory])
    finally:
        os.close(memory)
    with pytest.raises(ValueError, match="can still shrink"):
        wire.receive(ours, max_data=0)


@pytest.mark.parametrize("shapes", [[[64]], [[-1]], [[2**40, 2**40]]])
def test_arrays_without_their_memory_are_refused(shapes: list[list[int]], ends: Ends) -> None:
    ours, theirs = ends
    theirs.sendall(head({"shapes": shapes}))
    with pytest.raises(ValueError, match="no shared memory"):
        wire.receive(ours, max_data=0)


def test_a_message_that_is_cut_or_too_long_is_refused(ends: Ends) -> None:
    ours, theirs = ends
    theirs.sendall(wire.LENGTHS.pack(wire.MAX_JSON + 1, 0))
    with pytest.raises(ValueError, match="too long"):
        wire.receive(ours, max_data=0)
    theirs.sendall(head({"shapes": []}, b"four"))
    with pytest.raises(ValueError, match="too long"):
        wire.receive(ours, max_data=3)


def test_a_message_without_its_end_is_an_end(ends: Ends) -> None:
    ours, theirs = ends
    theirs.sendall(head({"shapes": []})[:-1])
    theirs.close()
    with pytest.raises(EOFError):
        wire.receive(ours, max_data=0)


@pytest.mark.slow
def test_a_nursery_whose_last_answer_is_not_read_ends_silently() -> None:
    """Linux then reports a reset connection; a traceback would hide why the service ended."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", nursery.__name__, str(theirs.fileno()), "0"]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    with process, ours:
        ours.settimeout(60)
        ours.sendall(nursery.REQUEST.pack(nursery.REAP, os.getpid()))
        assert ours.recv(1, socket.MSG_PEEK)  # it has answered
        ours.close()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


def test_only_its_own_children_are_ended_by_the_nursery() -> None:
    """A nursery that replaced another one does not know what its predecessor's ids stand for."""
    command = ["sh", "-c", "sleep 30 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        assert nursery._reap(grandchild) == -errno.ECHILD
        os.kill(grandchild, 0)  # it lives
        os.kill(grandchild, 9)
