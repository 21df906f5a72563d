"""Valid and hostile requests for the soak test, and a client that sends them.

Each case has the bytes of a request, the way to send it, and the expected statuses.
503 (busy) and 504 (too late) are always allowed.
"""

from __future__ import annotations

import asyncio
import enum
import io
import random
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

BUSY = frozenset({503, 504})
CHUNK = 64 * 1024
DRIP_S = 0.05  # between the bytes of a slow body
SLOW_S = 1.0  # between the bytes of an answer that is read slowly


class Manner(enum.Enum):
    """The way in which a request is sent."""

    WHOLE = "whole"
    CHUNKED = "chunked"  # without Content-Length
    CRUMBS = "in chunks of one byte"
    DRIPPING = "dripping"  # a few bytes at a time
    READING = "reading slowly"  # one byte of the answer a second
    LEAVING = "leaving"  # disconnect before the answer, perhaps before the end of the body


CHUNKS = {Manner.CHUNKED: CHUNK, Manner.CRUMBS: 1}  # bytes of each


@dataclass(frozen=True)
class Case:
    """A kind of request; `right` are the expected statuses besides BUSY."""

    name: str
    right: frozenset[int]
    target: str
    headers: dict[str, str]
    body: bytes
    manner: Manner = Manner.WHOLE
    method: str = "POST"

    def head(self) -> bytes:
        """Return the request line and the headers."""
        length = (
            {"Transfer-Encoding": "chunked"}
            if self.manner in CHUNKS
            else {"Content-Length": str(len(self.body))}
        )
        lines = [
            f"{name}: {value}" for name, value in ({"Host": "soak"} | self.headers | length).items()
        ]
        return "\r\n".join([f"{self.method} {self.target} HTTP/1.1", *lines, "", ""]).encode()


def good(photos: Sequence[bytes], outputs: Sequence[str]) -> list[Case]:
    """Return valid requests for every photo and output."""
    return [
        Case(output, frozenset({200}), f"/segment?output={output}", IMAGE, photo)
        for photo in photos
        for output in outputs
    ]


IMAGE = {"Content-Type": "application/octet-stream"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def hostile(photo: bytes, max_body_bytes: int) -> list[Case]:
    """Return a hostile request of every kind; `photo` is a valid JPEG."""
    large = bytes(max_body_bytes + 1)
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return [
        _case("truncated JPEG", 400, photo[: len(photo) // 2]),
        _case("no image", 400, b"hello"),
        _case("empty body", 400, b""),
        _case("bomb", 413, bomb()),
        _case("oversize", 413, large),
        _case("oversize in chunks", 413, large, manner=Manner.CHUNKED),
        _case("slow body", 408, photo, manner=Manner.DRIPPING),
        _case("wrong type", 415, photo, {"Content-Type": "text/html"}),
        _case("form without its end", 400, part + photo, FORM),
        _case("form without a file", 400, b"--b--\r\n", FORM),
        _case("form without a boundary", 400, photo, {"Content-Type": "multipart/form-data"}),
        _case("unknown model", 404, photo, target="/segment?model=none"),
        _case("unknown output", 400, photo, target="/segment?output=none"),
        _case("wrong deadline", 400, photo, IMAGE | {"X-Request-Timeout-Ms": "soon"}),
        _case("short deadline", 200, photo, IMAGE | {"X-Request-Timeout-Ms": "1"}),
    ]


def leaving(photo: bytes) -> Case:
    """Return a request whose client disconnects early."""
    return _case("client leaves", 200, photo, manner=Manner.LEAVING)


def _case(
    name: str,
    right: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    target: str = "/segment",
    manner: Manner = Manner.WHOLE,
) -> Case:
    return Case(name, frozenset({right}), target, headers or IMAGE, body, manner)


def bomb() -> bytes:
    """Return a PNG of a few kilobytes that claims to have 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def small_photos(sources: Sequence[bytes]) -> list[bytes]:
    """Return each source in several small sizes and formats, which are fast to decode."""
    found = []
    for source in sources:
        for kind, side in (("JPEG", 96), ("PNG", 64), ("WEBP", 128), ("BMP", 48), ("JPEG", 320)):
            with Image.open(io.BytesIO(source)) as image:
                small = image.convert("RGB")
            small.thumbnail((side, side))
            out = io.BytesIO()
            small.save(out, kind)
            found.append(out.getvalue())
    return found


class HostileClient:
    """Sends requests to one address and reuses the connection when possible."""

    def __init__(self, host: str, port: int, chance: random.Random) -> None:
        self._address = host, port
        self._chance = chance
        self._kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, case: Case) -> int | None:
        """Return the status; None if the client left first. Raises OSError without an answer."""
        if case.manner is Manner.LEAVING:
            return await self._leave(case)
        async with self._connection() as (reader, writer):
            sending = asyncio.create_task(_send(writer, case))
            try:
                if case.manner is Manner.READING:
                    await _read_slowly(reader)
                status, lasts = await _answer(reader)
            finally:
                complete = sending.done() and not sending.cancelled() and not sending.exception()
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            if lasts and complete:
                self._kept = reader, writer
        return status

    async def _leave(self, case: Case) -> int | None:
        async with self._connection() as (reader, writer):
            whole = case.head() + case.body
            writer.write(whole[: self._chance.choice([len(whole), len(whole), len(whole) // 2])])
            with suppress(TimeoutError):
                async with asyncio.timeout(self._chance.expovariate(20)):  # 50 ms on average
                    status, _ = await _answer(reader)
                    return status
        return None

    @asynccontextmanager
    async def _connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Give the kept connection or a new one; close it unless it is kept again."""
        reader, writer = self._kept or await asyncio.open_connection(*self._address)
        self._kept = None
        try:
            yield reader, writer
        finally:
            if self._kept is None:
                writer.close()

    def close(self) -> None:
        """Close the kept connection."""
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None


async def _send(writer: asyncio.StreamWriter, case: Case) -> None:
    writer.write(case.head())
    step = 10 if case.manner is Manner.DRIPPING else CHUNK
    for start in range(0, len(case.body), step):
        piece = case.body[start : start + step]
        if case.manner in CHUNKS:
            piece = _chunked(piece, CHUNKS[case.manner])
        writer.write(piece)
        await writer.drain()
        if case.manner is Manner.DRIPPING:
            await asyncio.sleep(DRIP_S)
    if case.manner in CHUNKS:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


@lru_cache(16)  # cutting a body for each request would delay the clients that are measured
def _chunked(data: bytes, size: int) -> bytes:
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


async def _read_slowly(reader: asyncio.StreamReader) -> None:
    """Read the answer byte by byte, until the service closes the connection."""
    while await reader.read(1):
        await asyncio.sleep(SLOW_S)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Return the status and whether the connection stays open; raises OSError if it breaks."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        first, *lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError(
            "the connection was closed before the end of the answer"
        ) from error
    return int(first.split(" ")[1]), headers.get("connection") != "close"
