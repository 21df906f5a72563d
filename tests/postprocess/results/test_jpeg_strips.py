from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from postprocess.results import jpeg_strips, threads

QUALITY = {"quality": 90}


@pytest.fixture(autouse=True)
def _small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LARGE", 1000)
    monkeypatch.setattr(jpeg_strips, "STRIP", 16 * 100)


def _noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def _pillow(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **QUALITY, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "rows"), [((100, 320), 1), ((50, 301), 2), ((17, 64), 5), ((1000, 40), 1)]
)
def test_strips_join_to_the_file_that_libjpeg_writes(size: tuple[int, int], rows: int) -> None:
    """libjpeg writes the same bytes with restart markers, and the same pixels without."""
    image = _noise(*size)
    made = jpeg_strips.encode(image, QUALITY)
    assert made == _pillow(image, restart_marker_rows=rows)
    plain = Image.open(io.BytesIO(_pillow(image)))
    assert Image.open(io.BytesIO(made)).tobytes() == plain.tobytes()


def test_a_strip_has_no_more_blocks_than_a_restart_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jpeg_strips, "STRIP", 2**60)
    monkeypatch.setattr(jpeg_strips, "MOST_BLOCKS", 5)
    image = _noise(32, 100)  # two blocks across
    assert jpeg_strips.encode(image, QUALITY) == _pillow(image, restart_marker_rows=2)


def test_small_pictures_and_grey_are_as_pillow_writes_them() -> None:
    small, grey = _noise(30, 30), _noise(100, 100).convert("L")
    assert jpeg_strips.encode(small, QUALITY) == _pillow(small)
    assert jpeg_strips.encode(grey, QUALITY) == _pillow(grey)


def test_systems_without_files_in_memory_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = _noise(100, 100)
    expected = jpeg_strips.encode(image, QUALITY)
    monkeypatch.delattr(os, "memfd_create")
    assert jpeg_strips.encode(image, QUALITY) == expected
