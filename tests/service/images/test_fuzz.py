"""For any bytes, the decoder's first stage quickly gives a photo or a ServiceError."""

from __future__ import annotations

import io
import time
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import ServiceError
from service.images import imaging
from tests.service.web import photo

MAX_PIXELS = 100_000
HEADER = 220  # bytes in which most changes are made
KINDS: dict[str, dict[str, object]] = {
    "JPEG": {"progressive": True},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
    "BMP": {},
}


@cache
def sound(kind: str) -> bytes:
    """A valid photo with EXIF data."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    image = Image.fromarray(photo(20, 30))
    options = KINDS[kind] if kind == "BMP" else KINDS[kind] | {"exif": exif}
    image.save(out, kind, **options)
    return out.getvalue()


CHANGES = st.lists(
    st.tuples(st.integers(0, HEADER), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES, cut=st.integers(0, 60))
def test_changed_header_gives_a_photo_or_a_service_error(
    kind: str, changes: list[tuple[int, bytes]], cut: int
) -> None:
    """No other exception leaves the decoder, and none of these small files takes a second."""
    data = bytearray(sound(kind))
    for at, new in changes:
        data[at % len(data) : at % len(data) + len(new)] = new
    if cut > 40:
        del data[-cut:]
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF data
        try:
            opened = imaging.open_checked(bytes(data), MAX_PIXELS)
            assert 0 < opened.pixels <= MAX_PIXELS
            decoded = imaging.decode(opened, reduce_to=16)
        except ServiceError:
            pass
        else:
            assert np.asarray(decoded.image).ndim == 3
    assert time.process_time() - began < 1
