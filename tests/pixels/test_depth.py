"""Photos of 16 bits become 8 bits by one rule, in the service and in training and prediction."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from model.data.photo import as_photo, read_photo
from pixels import depth
from service.client.uploads import UnshrinkableError, shrink
from service.errors import InvalidImage
from service.images.imaging import decode, open_checked

Samples = NDArray[np.uint16]


def samples(brightest: int, channels: int = 3) -> Samples:
    """Noise (H, W, C) with a brightest sample."""
    found = np.random.default_rng(0).integers(0, brightest + 1, (12, 20, channels), np.uint16)
    found[3, 4, 0] = brightest
    return found


def png(pixels: NDArray[np.uint8] | Samples) -> bytes:
    """Write 16 bits by hand: Pillow writes such colours in 8."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.itemsize
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    raw = pixels.astype(f">u{pixels.itemsize}")
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    meaning = "rgb" if pixels.ndim == 3 and pixels.shape[-1] >= 3 else "minisblack"
    tifffile.imwrite(out, pixels.squeeze(), **{"photometric": meaning, **options})
    return out.getvalue()


def planar(pixels: Samples) -> bytes:
    return tiff(np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")


WRITERS: list[Callable[[Samples], bytes]] = [
    png,
    tiff,
    lambda pixels: tiff(pixels, byteorder=">"),
    lambda pixels: tiff(pixels, compression="deflate"),
    lambda pixels: tiff(pixels, byteorder=">", compression="deflate"),
]
NAMES = ["png", "tiff", "big-endian", "deflate", "big-endian-deflate"]
# Brightest sample -> bits of white, as the rule in docs/api.md says.
RULE = [(0, 8), (255, 8), (256, 10), (1023, 10), (4095, 12), (4096, 14), (16383, 14)]
RULE += [(16384, 16), (65535, 16)]


def both(data: bytes, tmp_path: Path, suffix: str = ".img") -> NDArray[np.uint8]:
    """The pixels as the service decodes them, which must be those of model.predict."""
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(data)
    served = np.asarray(decode(open_checked(data, 10**6)).image)
    assert (served == read_photo(path)).all()
    assert (served == as_photo(Image.open(path))).all()
    return served


@pytest.mark.parametrize(("brightest", "bits"), RULE)
def test_the_brightest_sample_decides_how_many_bits_are_used(brightest: int, bits: int) -> None:
    assert depth.used_bits(brightest) == bits


@pytest.mark.parametrize("write", WRITERS, ids=NAMES)
@pytest.mark.parametrize(("brightest", "bits"), RULE)
def test_colours_of_16_bits_keep_the_bits_that_are_used(
    write: Callable[[Samples], bytes], brightest: int, bits: int, tmp_path: Path
) -> None:
    pixels = samples(brightest)
    assert (both(write(pixels), tmp_path) == pixels // 2 ** (bits - 8)).all()


@pytest.mark.parametrize("write", WRITERS, ids=NAMES)
@pytest.mark.parametrize(("brightest", "bits"), RULE)
def test_grey_of_16_bits_keeps_the_bits_that_are_used(
    write: Callable[[Samples], bytes], brightest: int, bits: int, tmp_path: Path
) -> None:
    pixels = samples(brightest, channels=1)
    expected = np.broadcast_to(pixels // 2 ** (bits - 8), (*pixels.shape[:2], 3))
    assert (both(write(pixels), tmp_path) == expected).all()


@pytest.mark.parametrize(("brightest", "bits"), RULE)
def test_planes_are_divided_by_one_number(brightest: int, bits: int) -> None:
    """One for all three, so that colours stay; training refuses such files by name."""
    pixels = samples(brightest)
    pixels[..., 1] //= 5
    found = np.asarray(decode(open_checked(planar(pixels), 10**6)).image)
    assert (found == pixels // 2 ** (bits - 8)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_8_bits_stay_as_they_are_however_dark(channels: int, tmp_path: Path) -> None:
    pixels = (samples(255, channels) // 16).astype(np.uint8)
    for data in (png(pixels), tiff(pixels)):
        assert (both(data, tmp_path) == pixels).all()


def test_a_bright_photo_of_16_bits_equals_its_8_bits(tmp_path: Path) -> None:
    eight = samples(255).astype(np.uint8)
    sixteen = eight.astype(np.uint16) * 257
    assert (both(png(sixteen), tmp_path) == both(png(eight), tmp_path)).all()


@pytest.mark.parametrize("write", [png, tiff], ids=["png", "tiff"])
def test_alpha_is_not_stretched(write: Callable[..., bytes], tmp_path: Path) -> None:
    """Half transparent dark red on white, with white at 2^12."""
    pixels = np.zeros((6, 6, 4), np.uint16)
    pixels[..., 0], pixels[..., 3] = 4095, 0x8080
    more = {} if write is png else {"extrasamples": "unassalpha"}
    found = both(write(pixels, **more), tmp_path)
    assert (abs(found[0, 0].astype(int) - (255, 127, 127)) <= 1).all()


def test_an_orientation_is_applied_to_stretched_photos_too(tmp_path: Path) -> None:
    pixels = samples(1023)
    data = tiff(pixels, extratags=[(274, 3, 1, 6, True)])
    assert (both(data, tmp_path, ".tif") == np.rot90(pixels // 4, -1)).all()


@pytest.mark.parametrize("kind", [np.float32, np.uint32, np.int16])
@pytest.mark.parametrize("channels", [1, 3])
def test_float_32_bit_and_signed_samples_are_refused_with_advice(
    kind: type[np.generic], channels: int, tmp_path: Path
) -> None:
    data = tiff(samples(255, channels).astype(kind))
    with pytest.raises(InvalidImage, match=r"gdal_translate -ot Byte -scale|send 8 or 16 bits"):
        decode(open_checked(data, 10**6))


def test_the_client_leaves_16_bits_to_the_service() -> None:
    for data in (png(samples(4095)), png(samples(4095, 1)), tiff(samples(4095))):
        with pytest.raises(UnshrinkableError, match="left to the service"):
            shrink(data, max_side=10)
    eight = samples(255).astype(np.uint8)
    assert Image.open(io.BytesIO(shrink(png(eight), max_side=10))).size == (10, 6)
