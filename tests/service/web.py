"""Serve tiny models over HTTP, for the tests."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from starlette.types import Message

from postprocess.results.facts import Extras
from service.http.app import create_app
from service.inference import models
from service.inference.engine import Prediction
from service.inference.models import Models
from service.settings import Settings


@contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[TestClient]:
    """A client of a service on the models of a folder."""
    settings = Settings(models=folder, device="cpu", threads=1, **changes)
    with loopback(create_app(settings, models.load(settings))) as client:
        yield client


def loopback(app: FastAPI) -> TestClient:
    """A client on the service's own host, which may reload models."""
    return TestClient(app, client=("127.0.0.1", 50000))


def photo(height: int = 40, width: int = 50, seed: int = 0) -> NDArray[np.uint8]:
    """A photo of noise in patches of 5 x 5 pixels."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 5), -(-width // 5), 3), np.uint8)
    return patches.repeat(5, 0).repeat(5, 1)[:height, :width]


def png(image: NDArray[np.uint8]) -> bytes:
    """A photo as a PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def opened(body: bytes) -> NDArray[np.uint8]:
    """The pixels of an encoded image, or the class ids if it has a palette."""
    return np.asarray(Image.open(io.BytesIO(body)))


def post(
    client: TestClient, body: bytes, *, headers: dict[str, str] | None = None, **query: Any
) -> Any:
    """Send a PNG to /segment."""
    kind = {"Content-Type": "image/png"}
    return client.post("/segment", content=body, headers=kind | (headers or {}), params=query)


class Held:
    """Models whose engine waits for a gate, for load tests."""

    def __init__(self, settings: Settings) -> None:
        self.models: Models = models.load(settings)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.gate.set()  # open for the warm-up
        run = self.models.get(None).engine.predict

        def held(images: NDArray[np.uint8], extras: Extras) -> list[Prediction]:
            self.entered.set()
            assert self.gate.wait(10)
            return run(images, extras)

        self.models.get(None).batcher.sessions[0].run = held
        self.settings = settings


class Request:
    """A POST to /segment at the ASGI level, so that its client can disconnect at any moment."""

    def __init__(
        self,
        app: FastAPI,
        body: bytes | None,
        kind: str,
        query: str = "",
        reads: asyncio.Event | None = None,
    ) -> None:
        """Send the body at once; None sends only the headers. Create it in a running event loop.

        `reads`: set when the client begins to read the answer; None: at once.
        """
        self.sent: list[Message] = []
        self._reads = reads
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        if body is not None:
            self._incoming.put_nowait({"type": "http.request", "body": body})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/segment",
            "query_string": query.encode(),
            "headers": [(b"content-type", kind.encode()), (b"host", b"test")],
        }
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._send))

    def leave(self) -> None:
        """The client closes its connection."""
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if self._reads is not None:
            await self._reads.wait()


def end_session(models: Models, number: int = 0) -> None:
    """Let a session of the default model die, as after an error of its engine."""
    task = models.get(None).batcher.sessions[number].loop_task
    assert task is not None
    task.get_loop().call_soon_threadsafe(task.cancel)
