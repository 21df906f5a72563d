"""What the HTTP parser refuses, and what it must not refuse, however it is cut into packets."""

from __future__ import annotations

import h11
import pytest

from service.http.middleware.protocol import (
    MOST_CRUMBS,
    MOST_HEADER_BYTES,
    MOST_HEADERS,
    Connection,
)


def head(headers: int = 0, filler: int = 0) -> bytes:
    lines = [b"GET /livez HTTP/1.1", b"Host: a", *[b"X-A: b"] * headers]
    lines += [b"X-Filler: " + b"x" * filler] if filler else []
    return b"\r\n".join([*lines, b"", b""])


def events(data: bytes, piece: int) -> list[object]:
    """Everything that the parser finds if the bytes come in pieces of this size."""
    connection, found = Connection(h11.SERVER, MOST_HEADER_BYTES), list[object]()
    for start in range(0, len(data), piece):
        connection.receive_data(data[start : start + piece])
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            found.append(event)
    return found


PIECES = pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000, 1_000_000])


@PIECES
def test_headers_within_the_limits_are_taken_in_pieces_of_any_size(piece: int) -> None:
    for data in (head(headers=MOST_HEADERS - 3), head(filler=MOST_HEADER_BYTES - 100)):
        request, end = events(data, piece)
        assert isinstance(request, h11.Request)
        assert isinstance(end, h11.EndOfMessage)


@PIECES
@pytest.mark.parametrize(
    "data", [head(headers=MOST_HEADERS + 1), head(filler=MOST_HEADER_BYTES + 1)]
)
def test_headers_beyond_a_limit_are_refused_in_pieces_of_any_size(data: bytes, piece: int) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        events(data, piece)


@PIECES
@pytest.mark.parametrize(
    "data", [head(headers=MOST_HEADERS + 1), head(filler=MOST_HEADER_BYTES + 1)]
)
def test_headers_that_come_with_the_request_before_are_limited_too(data: bytes, piece: int) -> None:
    connection, requests = Connection(h11.SERVER, MOST_HEADER_BYTES), 0
    pipelined = head() * 3 + data
    with pytest.raises(h11.RemoteProtocolError):  # noqa: PT012 - where it is raised depends on the pieces
        for start in range(0, len(pipelined), piece):
            connection.receive_data(pipelined[start : start + piece])
            while (event := connection.next_event()) is not h11.NEED_DATA:
                if event is h11.PAUSED:
                    answered(connection)
                    connection.start_next_cycle()
                requests += isinstance(event, h11.Request)
    assert requests == 3


def answered(connection: Connection) -> None:
    connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())


@pytest.mark.parametrize("has_answer", [False, True])
def test_a_body_in_tiny_chunks_is_refused_with_an_answer_and_without(has_answer: bool) -> None:
    connection = Connection(h11.SERVER, MOST_HEADER_BYTES)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    if has_answer:
        answered(connection)
    connection.receive_data(b"1\r\nx\r\n" * (MOST_CRUMBS + 1))
    for _ in range(MOST_CRUMBS):
        assert isinstance(connection.next_event(), h11.Data)
    with pytest.raises(h11.RemoteProtocolError):
        connection.next_event()
