"""The service over HTTP on tiny models, as the tests of its parts use it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from service import models
from service.app import create_app
from service.settings import Settings


@contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[TestClient]:
    """A client of a service on the models of a folder."""
    settings = Settings(models=folder, device="cpu", threads=1, **changes)
    with TestClient(create_app(settings, models.load(settings))) as client:
        yield client


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
    """The pixels of an encoded image: ids, if it has a palette."""
    return np.asarray(Image.open(io.BytesIO(body)))


def post(
    client: TestClient, body: bytes, *, headers: dict[str, str] | None = None, **query: Any
) -> Any:
    """Send a PNG to /segment."""
    kind = {"Content-Type": "image/png"}
    return client.post("/segment", content=body, headers=kind | (headers or {}), params=query)
