"""A service that answers like the real one and fails on purpose, on a free loopback port.

It speaks HTTP over asyncio streams by hand, because cutting a connection in the
middle of an answer is what frameworks prevent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import ssl
import struct
import sys
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from PIL import Image, UnidentifiedImageError

CLASSES = [
    {"id": 0, "name": "background", "pixels": 30, "fraction": 0.75, "box": [0, 0, 7, 4]},
    {"id": 8, "name": "cat", "pixels": 10, "fraction": 0.25, "box": [2, 1, 6, 3]},
]
FILES = {"mask": "mask.png", "overlay": "overlay.png", "json": "result.json", "npz": "labels.npz"}


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    is_cut: bool = False  # half of the body, then the connection closes
    drip_s: float = 0.0  # between two bytes of head and body
    is_endless: bool = False  # the body again and again


Misbehave = Callable[[Request, int], Answer | None]


def problem(status: int, code: str, detail: str = "no", **headers: str) -> Answer:
    body = {"type": f"/problems/{code}", "title": "No", "status": status, "detail": detail}
    text = json.dumps({**body, "code": code, "request_id": "r-1"})
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, text.encode(), "application/problem+json", names)


class FlakyServer:
    """`misbehave(request, nth)` may return an Answer instead; nth counts requests per body."""

    def __init__(
        self, misbehave: Misbehave | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.tls = tls
        self.misbehave = misbehave or (lambda request, nth: None)
        self.model, self.digest = "light", "d1"
        self.delay_s = 0.0  # before every answer
        self.requests: list[Request] = []
        self.seen: Counter[bytes] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def segmented(self) -> list[bytes]:
        """The bodies of all requests for segmentation."""
        return [request.body for request in self.requests if request.path == "/segment"]

    def start(self) -> None:
        self._thread.start()
        self._is_up.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await _read(reader)) is not None:
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                answer = self._answer(request)
                await asyncio.sleep(self.delay_s + answer.delay_s)
                self.in_flight -= 1
                await _write(writer, answer)
                if answer.is_cut:
                    break
        self._writers.discard(writer)
        writer.transport.abort()

    def _answer(self, request: Request) -> Answer:
        self.requests.append(request)
        self.seen[request.body] += 1
        return self.misbehave(request, self.seen[request.body]) or self._well(request)

    def _well(self, request: Request) -> Answer:
        if request.path == "/readyz":
            return Answer(200, b"{}")
        if request.path == "/models":
            model = {"name": self.model, "digest": self.digest, "default": True}
            names = {"classes": ["background", "cat"], "palette": [[0, 0, 0], [64, 0, 0]]}
            return Answer(200, json.dumps({"models": [{**model, **names}]}).encode())
        if request.path == "/segment":
            return self._segmented(request)
        return problem(404, "not-found")

    def _segmented(self, request: Request) -> Answer:
        outputs = request.query["output"].split(",")
        files = {output: result(output, request.body, self.digest) for output in outputs}
        headers = {"X-Model": self.model, "X-Model-Digest": self.digest, "X-Request-ID": "r-1"}
        headers |= {"X-Execution-Provider": "CPU", "Server-Timing": "decode;dur=1.5, infer;dur=20"}
        if len(files) == 1:
            kind = {"json": "application/json", "npz": "application/octet-stream"}
            return Answer(200, files[outputs[0]], kind.get(outputs[0], "image/png"), headers)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for output, content in files.items():
                archive.writestr(FILES[output], content)
        return Answer(200, buffer.getvalue(), "application/zip", headers)


def result(output: str, photo: bytes, digest: str = "d1") -> bytes:
    """The result for a photo. It differs by photo, output and model."""
    if output == "json":
        return json.dumps({"classes": CLASSES}).encode()
    text = f"{output} of {hashlib.sha256(photo).hexdigest()} by {digest}".encode()
    width, height = size_of(photo)
    if output != "npz":
        return png(width, height, text)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({height}, {width}), }}\n"
        npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
        archive.writestr(zipfile.ZipInfo("labels.npy"), npy + bytes(width * height))
        archive.comment = text
    return buffer.getvalue()


def size_of(photo: bytes) -> tuple[int, int]:
    """The size (W, H) of a real photo; for other bytes any size."""
    try:
        with Image.open(io.BytesIO(photo)) as image:
            return image.size
    except UnidentifiedImageError:
        return 4, 3


def png(width: int, height: int, text: bytes = b"") -> bytes:
    """Write a grey PNG that contains a text."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"tEXt": b"Comment\0" + text,
        b"IDAT": zlib.compress(bytes((width + 1) * height)),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@contextlib.contextmanager
def running(
    misbehave: Misbehave | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[FlakyServer]:
    server = FlakyServer(misbehave, tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    url = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    return Request(method, url.path, query, headers, body)


async def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    length = {} if answer.is_endless else {"Content-Length": str(len(answer.body))}
    headers = {"Content-Type": answer.content_type, **length}
    lines = [f"{name}: {value}" for name, value in (headers | answer.headers).items()]
    head = "\r\n".join([f"HTTP/1.1 {answer.status} Answer", *lines, "", ""])
    body = answer.body[: len(answer.body) // 2] if answer.is_cut else answer.body
    message = head.encode("latin-1") + body
    step = 1 if answer.drip_s else len(message)
    for at in range(0, len(message), step):
        writer.write(message[at : at + step])
        await writer.drain()
        await asyncio.sleep(answer.drip_s)
    while answer.is_endless:
        writer.write(body)
        await writer.drain()


def main() -> None:
    """Run as `flaky_server.py PORT` (0: any free port): print the port and serve until killed."""
    server = FlakyServer()
    server.port = int(sys.argv[1])
    server.delay_s = 0.2  # slow enough to be killed in the middle of a run, even on a busy machine
    server.start()
    print(server.port, flush=True)


if __name__ == "__main__":
    main()
