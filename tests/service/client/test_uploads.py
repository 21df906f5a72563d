from __future__ import annotations

import hashlib
import io

import pytest
from PIL import Image

from service.client.inputs import Photo
from service.client.uploads import prepare, shrink


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


@pytest.mark.parametrize("content", [b"", b"no photo", encoded((800, 400))[:300]])
def test_what_is_no_photo_goes_out_untouched(content: bytes) -> None:
    assert shrink(content, 100) == content


def test_digest_is_the_photos_own_not_the_uploads() -> None:
    content = encoded((800, 400))
    upload = prepare(Photo("a.jpg", "/a.jpg", len(content), 0, lambda: content), 100)
    assert upload.sha256 == hashlib.sha256(content).hexdigest()
    assert len(upload.body) < len(content)
