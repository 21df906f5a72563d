"""TIFF files as cameras, scanners and GDAL write them, compared with tifffile's writer."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from pixels.bands import Samples
from pixels.tiff import BITS, FORMAT, PHOTOMETRIC, SAMPLES, with_directory
from service.errors import ImageTooLarge, InvalidImage
from service.images import imaging

HEIGHT, WIDTH = 40, 50


def pixels(bits: int, samples: int) -> NDArray[Any]:
    rng = np.random.default_rng(bits + samples)
    return rng.integers(0, 2**bits, (HEIGHT, WIDTH, samples)).astype(f"u{bits // 8}")


# Places in a header that are damaged; `make test-fast` tries one in seven.
CUTS = [
    pytest.param(cut, marks=pytest.mark.slow if number % 7 else ())
    for number, cut in enumerate(range(4, 400, 7))
]


def written(image: NDArray[Any], planar: str, **options: Any) -> bytes:
    """A file of (H, W, N)."""
    out = io.BytesIO()
    if image.shape[2] == 1:
        planar, image = "contig", image[..., 0]
    if planar == "separate":
        image = np.moveaxis(image, -1, 0)
    tifffile.imwrite(out, image, metadata=None, planarconfig=planar, **options)
    return out.getvalue()


def shown(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(imaging.decode(imaging.open_checked(data, 10**6)).image)


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"compression": "zlib"}])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("photometric", "samples"),
    [
        ("minisblack", 1),
        ("miniswhite", 1),
        ("rgb", 3),
        ("minisblack", 3),  # what GDAL writes of three bands of uint16, unless told
    ],
)
def test_samples_are_shown_by_their_eight_highest_bits(
    photometric: str, samples: int, bits: int, planar: str, byteorder: str, layout: dict[str, Any]
) -> None:
    image = pixels(bits, samples)
    data = written(image, planar, photometric=photometric, byteorder=byteorder, **layout)
    expected = (image >> (bits - 8)).astype(np.uint8)[..., :3]
    if photometric == "miniswhite":
        expected = 255 - expected
    assert (shown(data) == np.broadcast_to(expected, (HEIGHT, WIDTH, 3))).all()


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_sixteen_bit_alpha_is_shown_as_white(planar: str) -> None:
    image = pixels(16, 4)
    image[..., 3] = 0
    data = written(image, planar, photometric="rgb", extrasamples=["unassalpha"])
    assert (shown(data) == 255).all()


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_twelve_bits_fill_the_range(order: bytes, white_is_zero: bool) -> None:
    """Two values in three bytes, highest bits first, in either byte order."""
    values = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH // 2, 2))
    first, second = values[..., 0], values[..., 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    body = order + bytes(6) + packed.astype(np.uint8).tobytes()
    tags = {256: WIDTH, 257: HEIGHT, BITS: 12, 259: 1, PHOTOMETRIC: int(not white_is_zero)}
    tags |= {SAMPLES: 1, 273: 8, 278: HEIGHT, 279: packed.size}
    expected = (values.reshape(HEIGHT, WIDTH) >> 4).astype(np.uint8)
    found = shown(with_directory(body, tags))[..., 0]
    assert (found == (255 - expected if white_is_zero else expected)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_planes_are_turned_like_any_photo(orientation: int) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint16)
    image[:10, :10] = 65535  # at the top left as stored
    tag = (274, "H", 1, orientation, True)
    data = written(image, "separate", photometric="rgb", extratags=[tag])
    photo = imaging.decode(imaging.open_checked(data, 10**6))
    assert photo.size == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))
    assert photo.orientation == orientation
    where = np.argwhere(np.asarray(photo.image)[..., 1] == 255)
    top, left = (where.mean(axis=0) < 15).tolist()
    assert (top, left) == (orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8))


def test_a_bigtiff_in_planes_is_read() -> None:
    image = pixels(16, 3)
    data = written(image, "separate", photometric="rgb", bigtiff=True)
    assert (shown(data) == (image >> 8)).all()


@pytest.mark.parametrize(
    ("image", "photometric", "says"),
    [
        (np.zeros((4, 5, 3), np.float32), "minisblack", "3 x 32 bits, floating-point"),
        (np.zeros((4, 5, 1), np.int16), "minisblack", "1 x 16 bits, signed"),
        (np.zeros((4, 5, 3), np.uint32), "rgb", "3 x 32 bits, unsigned, RGB"),
        (np.zeros((4, 5, 7), np.uint16), "minisblack", "7 x 16 bits, unsigned, black is zero"),
        (np.zeros((4, 5, 2), np.uint16), "minisblack", "2 x 16 bits"),
    ],
)
def test_samples_of_no_known_range_are_named_and_told_what_to_do(
    image: NDArray[Any], photometric: str, says: str
) -> None:
    data = written(image, "contig", photometric=photometric)
    with pytest.raises(InvalidImage, match=says) as refused:
        imaging.open_checked(data, 10**6)
    bands = {1: "", 2: "-b 1 ", 3: ""}.get(image.shape[2], "-b 1 -b 2 -b 3 ")
    assert f"`gdal_translate -ot Byte -scale {bands}IN OUT`" in str(refused.value)


@pytest.mark.parametrize(
    ("tag", "values", "says"),
    [
        (BITS, (8, 8, 16), "3 samples with different bits, 8, 8, 16, cannot be read"),
        (BITS, (5, 6, 5), "3 samples with different bits, 5, 6, 5, cannot be read"),
        (FORMAT, (1, 1, 3), "3 samples with different sample formats, 1, 1, 3, cannot be read"),
    ],
)
def test_samples_of_different_kinds_are_refused_as_such(
    tag: int, values: tuple[int, ...], says: str
) -> None:
    tags = {256: 4, 257: 4, BITS: (8, 8, 8), 259: 1, PHOTOMETRIC: 2, SAMPLES: 3, FORMAT: (1, 1, 1)}
    data = with_directory(b"II*\0" + bytes(80), tags | {273: 8, 278: 4, 279: 64, tag: values})
    with pytest.raises(InvalidImage, match=says) as refused:
        imaging.open_checked(data, 10**6)
    assert "save every sample as 8 bits, unsigned" in str(refused.value)
    assert "-b 1" not in str(refused.value)


@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_directory_is_refused_not_shown(cut: int) -> None:
    """A byte set to 255 anywhere in a header gives a photo or InvalidImage, and no other error."""
    data = bytearray(written(pixels(16, 3), "separate", photometric="rgb"))
    data[cut : cut + 3] = b"\xff\xff\xff"
    with contextlib.suppress(InvalidImage, ImageTooLarge):
        assert shown(bytes(data)).ndim == 3


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_directory_of_bands_is_refused_not_shown(cut: int, planar: str) -> None:
    """The same for a model of four channels."""
    data = bytearray(written(pixels(16, 4), planar, photometric="minisblack"))
    data[cut : cut + 3] = b"\xff\xff\xff"
    with contextlib.suppress(InvalidImage, ImageTooLarge):
        opened = imaging.open_checked(bytes(data), 10**6, Samples(4))
        assert imaging.decode(opened).pixels.shape[2] == 4


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_alpha_beside_rgb_is_no_band_for_a_model_of_photos(planar: str) -> None:
    """A declared alpha is applied; a fourth band of another meaning is refused."""
    image = pixels(8, 4)
    alpha = written(image, planar, photometric="rgb", extrasamples=["unassalpha"])
    assert shown(alpha).shape == (HEIGHT, WIDTH, 3)
    other = written(image, planar, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(InvalidImage, match="has 4 bands, and the model takes the 3 of RGB"):
        imaging.open_checked(other, 10**6)


def tiled(side: int) -> bytes:
    """A TIFF of 1 x 1 grey pixel that declares one tile of `side` x `side`."""
    tags = {256: 1, 257: 1, BITS: 8, 259: 1, PHOTOMETRIC: 1, SAMPLES: 1}
    return with_directory(b"II*\0" + bytes(60), tags | {322: side, 323: side, 324: 8, 325: 16})


def test_tile_much_larger_than_the_image_is_refused_before_decoding() -> None:
    """A tile of 4096 x 4096 is allowed for any image, one of 40,000 x 40,000 is not for 1 x 1."""
    assert imaging.open_checked(tiled(4096), 10**6).size == (1, 1)
    for side in (4112, 40_000):
        with pytest.raises(InvalidImage, match=f"tiles of {side} x {side}"):
            imaging.open_checked(tiled(side), 10**6)


def test_a_tile_of_many_bands_may_have_fewer_pixels() -> None:
    """64 bands in tiles of 4096 x 4096 would be a gigabyte for one pixel."""
    tags = {256: 1, 257: 1, BITS: (8,) * 64, 259: 1, PHOTOMETRIC: 1, SAMPLES: 64, 324: 8, 325: 16}
    for side, allowed in ((1024, True), (1040, False)):
        data = with_directory(b"II*\0" + bytes(60), tags | {322: side, 323: side})
        if allowed:
            assert imaging.open_checked(data, 10**6, Samples(64)).size == (1, 1)
            continue
        with pytest.raises(InvalidImage, match=f"tiles of {side} x {side}"):
            imaging.open_checked(data, 10**6, Samples(64))


def test_image_of_a_single_tile_is_read() -> None:
    """An image that fills one tile of more than 4096 x 4096 pixels passes the check."""
    image = tifffile_of_one_tile(4112)
    assert imaging.open_checked(image, 10**8).size == (4112, 4112)


def tifffile_of_one_tile(side: int) -> bytes:
    file = io.BytesIO()
    pixels = np.zeros((side, side), np.uint8)
    tifffile.imwrite(file, pixels, tile=(side, side), compression="zlib")
    return file.getvalue()
