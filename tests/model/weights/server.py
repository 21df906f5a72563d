"""An HTTP server for downloads that fails in the ways of real networks."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """The server's content, and the faults that it shows."""

    content: bytes = b""
    etag: str = '"v1"'
    cut_after: int | None = None  # bytes of a response, then the connection is closed
    cuts: int = 1000  # how often it cuts
    statuses: list[int] = field(default_factory=list)  # sent before anything else
    redirect: str = ""
    ranges: bool = True
    length: bool = True  # send Content-Length
    seen: list[tuple[str, str]] = field(default_factory=list)  # path and Range of each request


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def behaviour(self) -> Behaviour:
        found = self.server.behaviour  # type: ignore[attr-defined]
        assert isinstance(found, Behaviour)
        return found

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        how = self.behaviour
        how.seen.append((self.path, self.headers.get("Range", "")))
        if how.statuses:
            self.empty(how.statuses.pop(0))
        elif how.redirect and not self.path.startswith("/moved"):
            self.empty(302, Location=how.redirect)
        else:
            self.content(how)

    def empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def content(self, how: Behaviour) -> None:
        start = self.start(how)
        body = how.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", how.etag)
        if start:
            last = len(how.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(how.content)}")
        if how.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if how.cut_after is not None and how.cuts > 0:
            how.cuts -= 1
            body = body[: how.cut_after]
            self.close_connection = True
        self.wfile.write(body)

    def start(self, how: Behaviour) -> int:
        """Return the offset to send from: 0 if the client has a part of another version."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not how.ranges or found is None or self.headers.get("If-Range") != how.etag:
            return 0
        return int(found[1])


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Run a server with this behaviour; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behaviour = behaviour  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
