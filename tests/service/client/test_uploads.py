from __future__ import annotations

import hashlib
import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.client.inputs import InputPhoto
from service.client.uploads import UnshrinkableError, prepare, shrink
from service.images import imaging


def encoded(size: tuple[int, int], kind: str = "JPEG", **options: object) -> bytes:
    image = Image.new("RGB", size)
    image.paste((250, 10, 10), (0, 0, size[0] // 2, size[1]))  # red on the left
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(("kind", "result"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "PNG")])
def test_larger_photo_is_shrunk_to_the_side(kind: str, result: str) -> None:
    with opened(shrink(encoded((800, 400), kind), 100)) as image:
        assert (image.size, image.format) == ((100, 50), result)


def test_photo_that_fits_is_sent_byte_for_byte() -> None:
    content = encoded((100, 50))
    assert shrink(content, 100) == content


def test_rotation_in_exif_is_applied_before_it_is_lost() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise brings the left side to the top
    with opened(shrink(encoded((800, 400), exif=exif), 100)) as image:
        assert image.size == (50, 100)
        red, dark = image.getpixel((25, 10)), image.getpixel((25, 90))
        assert isinstance(red, tuple)
        assert isinstance(dark, tuple)
        assert red[0] > 200
        assert dark[0] < 50


@pytest.mark.parametrize("content", [b"", b"no photo", b"GIF89a" + bytes(50)])
def test_file_that_is_not_a_photo_is_sent_unchanged(content: bytes) -> None:
    assert shrink(content, 100) == content


def test_broken_photo_is_sent_unchanged() -> None:
    content = encoded((800, 400))[:300]
    upload = prepare(InputPhoto("a.jpg", "/a.jpg", len(content), 0, lambda: content), 100)
    assert upload.body == content
    assert "cannot decode" in str(upload.unshrunk)


def noise(height: int, width: int, channels: int, seed: int = 3) -> NDArray[np.uint8]:
    """The picture is smooth, so it hardly matters whether it is shrunk or converted first."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, channels), np.uint8)
    bands = [
        np.asarray(
            Image.fromarray(small[..., band]).resize((width, height), Image.Resampling.BICUBIC)
        )
        for band in range(channels)
    ]
    return np.stack(bands, axis=-1)


RGB = Image.fromarray(noise(300, 400, 3))
GREY = RGB.convert("L")
HIDDEN = RGB.copy()  # colours that transparency hides on the left half
HIDDEN.putalpha(Image.fromarray(np.repeat([[0] * 200 + [255] * 200], 300, 0).astype(np.uint8)))
PALETTE = RGB.quantize(32)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def wide_profile() -> bytes:
    """A profile of a space other than sRGB, from which the service converts."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    swapped = bytearray(profile)  # red and green are swapped, so the difference is large
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(swapped)


LIKE_THE_SERVICE = {
    "jpeg": (saved(RGB, "JPEG", quality=95), "JPEG"),
    "grey jpeg": (saved(GREY, "JPEG", quality=95), "JPEG"),
    "jpeg with a profile": (saved(RGB, "JPEG", quality=95, icc_profile=wide_profile()), "JPEG"),
    "png": (saved(RGB, "PNG"), "PNG"),
    "png with a profile": (saved(RGB, "PNG", icc_profile=wide_profile()), "PNG"),
    "hidden colours": (saved(HIDDEN, "PNG"), "PNG"),
    "grey with alpha": (saved(HIDDEN.convert("LA"), "PNG"), "PNG"),
    "palette": (saved(PALETTE, "PNG"), "PNG"),
    "palette with a hole": (saved(PALETTE, "PNG", transparency=3), "PNG"),
    "two colours": (saved(GREY.convert("1", dither=Image.Dither.NONE), "PNG"), "PNG"),
    "webp with alpha": (saved(HIDDEN, "WEBP", lossless=True), "PNG"),
    "bmp": (saved(RGB, "BMP"), "PNG"),
    "plain tiff": (saved(RGB, "TIFF"), "PNG"),
    "grey tiff": (saved(GREY, "TIFF", compression="tiff_lzw"), "PNG"),
}


@pytest.mark.parametrize("name", LIKE_THE_SERVICE)
def test_service_sees_in_the_shrunk_photo_what_it_sees_in_the_photo(name: str) -> None:
    """The oracle decodes the original with the service's own decoder and then shrinks it."""
    content, kind = LIKE_THE_SERVICE[name]
    shrunk = shrink(content, 100)
    assert (opened(shrunk).size, opened(shrunk).format) == ((100, 75), kind)
    whole = imaging.decode(imaging.open_checked(content, 10**9)).image
    expected = whole.resize((100, 75), Image.Resampling.LANCZOS)
    seen = imaging.decode(imaging.open_checked(shrunk, 10**9)).image
    error = np.abs(np.asarray(seen, float) - np.asarray(expected, float))
    assert error.mean() < 1.5
    assert np.asarray(expected).std() > 20


LEFT_TO_THE_SERVICE = {
    "16-bit grey": saved(
        Image.fromarray(noise(300, 400, 1)[..., 0].astype(np.uint16) * 257), "PNG"
    ),
    "16-bit tiff": saved(Image.fromarray(np.zeros((300, 400), np.uint16)), "TIFF"),
    "float": saved(Image.fromarray(np.zeros((300, 400), np.float32)), "TIFF"),
    "cmyk": saved(RGB.convert("CMYK"), "JPEG"),
    "alpha tiff": saved(HIDDEN, "TIFF"),
    "negative tiff": saved(GREY, "TIFF", tiffinfo={262: 0}),
    "two pages": saved(RGB, "TIFF", save_all=True, append_images=[GREY]),
}


@pytest.mark.parametrize("name", LEFT_TO_THE_SERVICE)
def test_photo_that_only_the_service_can_decode_is_sent_unchanged_and_reported(name: str) -> None:
    content = LEFT_TO_THE_SERVICE[name]
    upload = prepare(InputPhoto("a.x", "/a.x", len(content), 0, lambda: content), 100)
    assert upload.body == content
    assert "left to the service" in str(upload.unshrunk)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_more_than_179_megapixels_are_shrunk_too(kind: str) -> None:
    """`Image.open` would refuse these. Pillow's limit stays as it is for other code."""
    limit = Image.MAX_IMAGE_PIXELS
    image = Image.new("L", (18_000, 10_000))
    with opened(shrink(saved(image, kind), 100)) as small:
        assert small.size == (100, 56)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_gigapixel_is_left_to_the_service() -> None:
    head = saved(Image.new("1", (8, 8)), "PNG")
    huge = head[:16] + struct.pack(">II", 40_000, 30_000) + head[24:]
    with pytest.raises(UnshrinkableError, match="too many to decode here"):
        shrink(huge, 100)


HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(12)


@pytest.mark.parametrize("photo", [encoded((800, 400), "AVIF"), HEIC], ids=["AVIF", "HEIC"])
def test_avif_and_heic_are_left_to_the_service(photo: bytes) -> None:
    """Their answers then have the photo's own size, which the summary must say."""
    upload = prepare(InputPhoto("a", "/a", len(photo), 0, lambda: photo), 100)
    assert upload.body == photo
    assert "left to the service" in str(upload.unshrunk)


def test_digest_is_the_photos_own_not_the_uploads() -> None:
    content = encoded((800, 400))
    upload = prepare(InputPhoto("a.jpg", "/a.jpg", len(content), 0, lambda: content), 100)
    assert upload.sha256 == hashlib.sha256(content).hexdigest()
    assert len(upload.body) < len(content)
