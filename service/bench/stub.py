"""A stub service that answers every photo at once with an empty mask.

Run it with `python -m service.bench.stub`.

With it, only the client limits the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import io
import json
from collections.abc import Sequence

from PIL import Image

from service.client.pictures import Size, size_of

HEADERS = "X-Model: stub\r\nX-Model-Digest: stub\r\nX-Request-ID: stub\r\n"
MODELS = {"models": [{"name": "stub", "digest": "stub", "default": True}]}


class Stub(asyncio.Protocol):
    """A connection that answers each complete request."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer all complete requests."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end]).lower()
            length = int(head.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0] or 0)
            if len(self._received) < end + 4 + length:
                return
            body = bytes(self._received[end + 4 : end + 4 + length])
            del self._received[: end + 4 + length]
            if self._transport is not None:
                self._transport.write(_answer(head, body))


def _answer(head: bytes, body: bytes) -> bytes:
    if not head.startswith(b"post /segment"):
        return _response("application/json", json.dumps(MODELS).encode())
    return _mask(size_of(body) or (1, 1))


@functools.cache
def _mask(size: Size) -> bytes:
    """The answer for photos of a size: the client refuses masks of another size."""
    out = io.BytesIO()
    Image.new("P", size).save(out, "PNG")
    return _response("image/png", out.getvalue())


def _response(kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{HEADERS}"
    return head.encode() + b"\r\n" + body


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stub, "127.0.0.1", port)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal."""
    p = argparse.ArgumentParser(prog="python -m service.bench.stub", description=__doc__)
    p.add_argument("--port", type=int, required=True, help="port to listen on")
    asyncio.run(_serve(p.parse_args(argv).port))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
