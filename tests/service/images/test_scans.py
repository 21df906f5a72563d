"""Tests of service/images/scans.py."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from service.errors import InvalidImage
from service.images.imaging import decode, open_checked
from service.images.scans import MAX_SCANS

AC_SCAN = bytes.fromhex("ffda0008010100010100")  # coefficient 1 of component 1, without data


def _progressive() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "JPEG", progressive=True)
    return out.getvalue()


def _with_scans(count: int) -> bytes:
    photo = _progressive()
    missing = count - photo.count(b"\xff\xda")
    return photo[:-2] + AC_SCAN * missing + photo[-2:]


def test_ordinary_progressive_jpeg_has_few_scans_and_is_read() -> None:
    """Pillow's progressive JPEG of about ten scans is decoded."""
    assert 1 < _progressive().count(b"\xff\xda") < 20
    assert decode(open_checked(_progressive(), 10**6)).size == (256, 256)


def test_jpeg_with_too_many_scans_is_refused_before_decoding() -> None:
    """A file of 100 scans passes the header's check; one of 101 is refused."""
    open_checked(_with_scans(MAX_SCANS), 10**6)
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        open_checked(_with_scans(MAX_SCANS + 1), 10**6)


def test_scans_inside_segments_and_behind_the_end_do_not_count() -> None:
    """Thumbnails in APP segments and data behind the end marker may contain any bytes."""
    photo, noise = _progressive(), b"\xff\xda" * 500
    segment = b"\xff\xe5" + (len(noise) + 2).to_bytes(2, "big") + noise
    assert open_checked(photo[:2] + segment + photo[2:] + noise, 10**6).size == (256, 256)


def test_jpeg_of_too_many_segments_is_refused_before_decoding() -> None:
    """Pillow reads each segment in Python: 9,000 empty ones pass, 11,000 are refused."""
    photo, segment = _progressive(), b"\xff\xe5\0\2"
    open_checked(photo[:2] + segment * 9_000 + photo[2:], 10**6)
    with pytest.raises(InvalidImage, match="more than 10000 segments"):
        open_checked(photo[:2] + segment * 11_000 + photo[2:], 10**6)


def test_jpeg_of_too_many_bytes_of_exif_is_refused_before_decoding() -> None:
    """Pillow joins the segments with EXIF data: 8 of 64 KB pass, 9 are refused."""
    photo = _progressive()
    segment = b"\xff\xe1" + (65_000).to_bytes(2, "big") + b"Exif\0\0" + bytes(65_000 - 8)
    open_checked(photo[:2] + segment * 8 + photo[2:], 10**6)
    with pytest.raises(InvalidImage, match="bytes of EXIF data"):
        open_checked(photo[:2] + segment * 9 + photo[2:], 10**6)


def test_work_grows_with_the_scans_of_a_jpeg() -> None:
    """A photo of ten scans is ordinary work; the same pixels in 100 scans are several times it."""
    ordinary, many = (open_checked(_with_scans(count), 10**6).work for count in (10, 100))
    assert 3 * ordinary < many < 20 * ordinary
