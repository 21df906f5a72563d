"""A running service with the tiny model, and a photo of which it knows every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import Client
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import photo, png

PHOTO = photo()
LABELS = onnx_models.expected(PHOTO)


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the service."""
    folder: Path = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx", confidence=True)
    with running(folder) as (address, _):
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


@pytest.fixture
def content() -> bytes:
    return png(PHOTO)


@pytest.fixture
def expected() -> NDArray[np.uint8]:
    """0 background, 1 dim, 2 bright."""
    return LABELS
