"""TIFF files of several bands, as GDAL and other writers make them, are read sample by sample."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pixels import bands, tiff

HEIGHT, WIDTH = 45, 70  # no multiple of a tile or a strip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


def noise(count: int, dtype: str) -> NDArray[Any]:
    rng = np.random.default_rng(count)
    return rng.integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, count)).astype(dtype)


def by_gdal(path: Path, pixels: NDArray[Any], **options: Any) -> bytes:
    """The file that GDAL writes of (H, W, C)."""
    height, width, count = pixels.shape
    size = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **size, **options) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path.read_bytes()


def read(data: bytes) -> NDArray[Any]:
    tags = tiff.directory(data)
    assert bands.problem(tags) == ""
    return bands.read(data, tags)


@pytest.mark.parametrize("tiles", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16}])
@pytest.mark.parametrize("interleave", ["PIXEL", "BAND"])
@pytest.mark.parametrize(("count", "dtype"), [(4, "uint8"), (4, "uint16"), (13, "uint16")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compress": "LZW", "predictor": 2},
        {"compress": "DEFLATE", "predictor": 2, "ENDIANNESS": "BIG"},
        {"compress": "ZSTD"},
        {"compress": "PACKBITS", "BIGTIFF": "YES"},
    ],
)
def test_every_sample_of_gdals_files_is_read_exactly(
    tmp_path: Path,
    options: dict[str, Any],
    count: int,
    dtype: str,
    interleave: str,
    tiles: dict[str, Any],
) -> None:
    """Compressions, differences, byte orders, strips, tiles and planes change no sample."""
    pixels = noise(count, dtype)
    data = by_gdal(tmp_path / "bands.tif", pixels, interleave=interleave, **options, **tiles)
    found = read(data)
    assert found.dtype == np.dtype(dtype)
    assert (found == pixels).all()


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_pillow_turns_a_photo(orientation: int, planar: str) -> None:
    pixels = noise(4, "uint8")
    out, stored = io.BytesIO(), np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(
        out, stored, photometric="minisblack", planarconfig=planar, metadata=None, extratags=[tag]
    )
    photo = Image.fromarray(pixels[..., 3])
    photo.getexif()[274] = orientation
    assert (read(out.getvalue())[..., 3] == np.asarray(ImageOps.exif_transpose(photo))).all()


def test_a_range_maps_its_ends_to_0_and_255_and_clips_beyond() -> None:
    stored = np.array([[[0, 100, 5100, 10100, 60000]]], np.uint16)
    assert bands.in_bytes(stored, (100, 10100)).tolist() == [[[0, 0, 128, 255, 255]]]
    assert bands.in_bytes(stored, None).tolist() == [[[0, 0, 19, 39, 234]]]  # the highest 8 bits


@pytest.mark.parametrize("limits", [(10, 10), (20, 10), (-1, 10), (0, 70_000)])
def test_a_range_must_rise_within_16_bits(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"sample_range=\["):
        bands.checked_range(limits)


@pytest.mark.parametrize(
    ("dtype", "options", "says"),
    [
        ("float32", {}, "32 bits, 8 or 16 are read: gdal_translate -ot UInt16 -scale"),
        ("int16", {}, "not unsigned integers: gdal_translate -ot UInt16 -scale"),
        ("uint8", {"photometric": "CMYK"}, "not bands but colours of another kind"),
        ("uint8", {"compress": "JPEG"}, "compression is not one that keeps bands"),
    ],
)
def test_files_that_hold_no_readable_bands_say_how_to_convert_them(
    tmp_path: Path, dtype: str, options: dict[str, Any], says: str
) -> None:
    data = by_gdal(tmp_path / "odd.tif", np.zeros((16, 16, 4), dtype), **options)
    assert says in bands.problem(tiff.directory(data))


def test_resizing_treats_each_band_like_a_grey_photo() -> None:
    """A fourth band that Pillow takes for alpha would change the other three."""
    pixels = noise(4, "uint8")
    small = bands.resized(pixels, (20, 13), reducing_gap=2.0)
    for band in range(4):
        grey = Image.fromarray(pixels[..., band])
        alone = grey.resize((20, 13), Image.Resampling.BILINEAR, reducing_gap=2.0)
        assert (small[..., band] == np.asarray(alone)).all()
