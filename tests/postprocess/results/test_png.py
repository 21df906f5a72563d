"""An independent decoder reads the same pixels from files written row by row."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from postprocess.results import png
from postprocess.results.png import Rows
from service.settings import SAMPLES

PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)


def repeated(rows: NDArray[np.uint8], counts: list[int]) -> NDArray[np.uint8]:
    return np.repeat(rows, counts, axis=0)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts", [[1], [7], [1, 1, 1], [3, 1, 1, 500], [2] * 60, [9000, 1, 8000], [1] * 700]
)
@pytest.mark.parametrize("width", [1, 2, 33, 5000])
def test_an_index_png_holds_every_row_as_often_as_asked(counts: list[int], width: int) -> None:
    rows = np.random.default_rng(width).integers(0, 256, (len(counts), width), np.uint8)
    image = opened(png.encode(Rows(rows, np.array(counts)), PALETTE))
    assert image.mode == "P"
    assert (np.asarray(image) == repeated(rows, counts)).all()
    assert image.getpalette() == PALETTE.ravel().tolist()


def test_grey_and_colours_come_back() -> None:
    rng, counts = np.random.default_rng(0), [4, 1, 1, 30]
    grey = rng.integers(0, 256, (4, 17), np.uint8)
    image = opened(png.encode(Rows(grey, np.array(counts))))
    assert image.mode == "L"
    assert (np.asarray(image) == repeated(grey, counts)).all()
    colours = rng.integers(0, 256, (4, 17, 3), np.uint8)
    image = opened(png.encode(Rows(colours, np.array(counts))))
    assert image.mode == "RGB"
    assert (np.asarray(image) == repeated(colours, counts)).all()


@pytest.mark.parametrize(
    "counts", [[1, 1], [5, 2, 1], [2, 40_000, 3], [1] * 255 + [3], [1] * 256 + [3], [1] * 600]
)
def test_the_stream_is_sound_to_its_checksum(counts: list[int]) -> None:
    """Image decoders may ignore the checksum; zlib checks it."""
    rows = np.random.default_rng(0).integers(0, 256, (len(counts), 700), np.uint8)
    data = png.encode(Rows(rows, np.array(counts)))
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start])
    stream = zlib.decompressobj()
    lines = stream.decompress(data[start + 4 : start + 4 + length]) + stream.flush()
    assert stream.eof  # only set after the checksum was verified
    assert len(lines) == sum(counts) * 701


def test_equal_rows_in_succession_are_one() -> None:
    image = np.array([[1, 1], [1, 1], [1, 2], [1, 1], [1, 1], [1, 1]], np.uint8)
    rows = Rows.of(image)
    assert rows.different.tolist() == [[1, 1], [1, 2], [1, 1]]
    assert rows.counts.tolist() == [2, 1, 3]
    assert (rows.image == image).all()
    several = Rows.of(image, np.array([1, 2, 3, 4, 5, 6]))
    assert several.different.tolist() == rows.different.tolist()
    assert several.counts.tolist() == [3, 3, 15]


def test_a_large_mask_takes_no_more_bytes_than_from_pillow() -> None:
    rows = np.random.default_rng(0).integers(0, 3, (40, 50), np.uint8).repeat(80, axis=1)
    counts = [75] * 40
    other = io.BytesIO()
    Image.fromarray(repeated(rows, counts)).save(other, "PNG", compress_level=1)
    assert len(png.encode(Rows(rows, np.array(counts)))) < len(other.getvalue())


def test_image_of_one_wide_row_needs_no_memory_for_repeats() -> None:
    """A row of 4,000,000 pixels is encoded within 16 MB: no block of 64 such rows is built."""
    rows = Rows.of(np.zeros((1, 4_000_000), np.uint8))
    tracemalloc.start()
    try:
        encoded = png.encode(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
    assert struct.unpack(">II", encoded[16:24]) == (4_000_000, 1)


@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (1, 700, 3), (3, 5), (png.AT_ONCE, 4, 3), (2 * png.AT_ONCE + 1, 9, 3)]
)
def test_a_picture_comes_back_whatever_its_size(shape: tuple[int, ...]) -> None:
    """Also where pieces of rows meet, and where a difference to the row above wraps around."""
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(png.encode_picture(picture))) as image:
        image.load()
        assert image.mode == ("RGB" if len(shape) == 3 else "L")
        assert (np.asarray(image) == picture).all()


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.jpg")), ids=lambda path: path.name)
def test_a_photo_takes_hardly_more_bytes_than_from_pillow(path: Path) -> None:
    """libpng chooses among five filters for each row; "Up" alone does nearly as well."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    out = io.BytesIO()
    photo.save(out, "PNG", compress_level=1)
    assert len(png.encode_picture(np.asarray(photo))) < 1.1 * len(out.getvalue())


def test_shares_count_what_nearest_gives() -> None:
    """Exactly, whether the picture is larger or smaller, and for sizes where floats round."""
    rng = np.random.default_rng(7)
    for have, want in rng.integers(1, [700, 6000], (2000, 2)):
        expected = np.bincount(png.nearest(have, want), minlength=have)
        assert np.array_equal(png.shares(have, want), expected), (have, want)


def test_shares_of_a_very_wide_picture_need_no_memory_for_its_pixels() -> None:
    """A PNG of 6 KB may be 49 million pixels wide; this once held the event loop for seconds."""
    tracemalloc.start()
    shares = png.shares(513, 49_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shares.sum() == 49_000_000
    assert peak < 100_000
