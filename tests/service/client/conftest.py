"""A fake service, and photos to send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .flaky_server import FlakyServer, running


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    """A server that answers correctly until a test sets `misbehave`."""
    with running() as server:
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos in two folders. Each one's content is its name, so their results differ."""
    folder = tmp_path / "photos"
    for name in ("cat.jpg", "trip/dog.png", "trip/far/bus.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "notes.txt").write_text("no photo")
    (folder / "trip" / "._dog.png").write_text("what macOS leaves behind")
    return folder
