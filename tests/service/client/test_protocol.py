from __future__ import annotations

import datetime
import email.utils
import io
import zipfile

import httpx
import pytest
from PIL import Image

from postprocess.results import outputs
from postprocess.results.encoders import FORMATS
from postprocess.results.outputs import LIKE_PHOTO, OUTPUTS, Wish
from postprocess.results.selection import Selection
from service.client.errors import BadAnswerError
from service.client.pictures import Size, size_of
from service.client.protocol import (
    ALL_FILES,
    FILES,
    INCLUDABLE,
    PHOTO_LIKE,
    Segmentation,
    media_type,
    parse_outputs,
    parse_timing,
    refusal,
    retry_after_s,
    segmentation,
)

from .flaky_server import png

JPEG = b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x03\x00\x04" + bytes(12) + b"\xff\xd9"  # 4 x 3


def answer(
    content: bytes, content_type: str, *outputs: str, size: Size | None = None
) -> Segmentation:
    response = httpx.Response(200, content=content, headers={"Content-Type": content_type})
    return segmentation(response, outputs, size)


def zipped(*names: str, method: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP whose entries are what their names say, 4 x 3 pixels."""
    content = {"png": png(4, 3), "jpg": JPEG, "json": b"{}"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in names:
            archive.writestr(name, content[name.rpartition(".")[2]])
    return buffer.getvalue()


def test_client_and_service_name_the_same_files() -> None:
    of_service = {name: file for name, (_, file) in OUTPUTS.items()}
    assert {name: file for name, file in of_service.items() if name not in LIKE_PHOTO} == {
        name: file for name, file in FILES.items() if name not in PHOTO_LIKE
    }
    assert PHOTO_LIKE == LIKE_PHOTO
    every = Selection(frozenset(), 0, 1)
    wishes = [Wish((name,), every, overlay_format=kind) for name in OUTPUTS for kind in FORMATS]
    named = {wish.kind(name)[1] for wish in wishes for name in wish.outputs}
    assert named <= ALL_FILES
    assert named | {*FILES.values(), "cutout.jpg"} == ALL_FILES
    assert INCLUDABLE == outputs.INCLUDABLE


@pytest.mark.parametrize(("kind", "transparent"), [("WEBP", True), ("WEBP", False), ("AVIF", True)])
@pytest.mark.parametrize("size", [(4, 3), (300, 200)])
def test_webp_and_avif_are_checked_like_other_pictures(
    kind: str, transparent: bool, size: Size
) -> None:
    """Not complete, or of another size: no file is written."""
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGBA" if transparent else "RGB").save(buffer, kind)
    content, media, suffix = buffer.getvalue(), f"image/{kind.lower()}", kind.lower()
    assert size_of(content) == size
    assert list(answer(content, media, "overlay", size=size).files()) == [f"overlay.{suffix}"]
    for broken in (content[:-1], content + b"\0", content[: len(content) // 2]):
        with pytest.raises(BadAnswerError, match=f"not a complete {kind}".replace("WEBP", "WebP")):
            answer(broken, media, "overlay", size=size)
    with pytest.raises(BadAnswerError, match="pixels, not"):
        answer(content, media, "overlay", size=(99, 98))


@pytest.mark.parametrize("max_side", [4, 7])
def test_pictures_must_have_the_size_that_was_asked_for(max_side: int) -> None:
    """With max_side a picture of a photo of 8 x 6 pixels is smaller, or as large as the photo."""
    response = httpx.Response(200, content=png(4, 3), headers={"Content-Type": "image/png"})
    if max_side == 4:
        assert segmentation(response, ("mask",), (8, 6), max_side).files()
    else:
        with pytest.raises(BadAnswerError, match="4 x 3 pixels, not 7 x 5"):
            segmentation(response, ("mask",), (8, 6), max_side)


def test_jpeg_overlay_gets_its_own_suffix() -> None:
    assert list(answer(JPEG, "image/jpeg", "overlay").files()) == ["overlay.jpg"]
    both = answer(zipped("mask.png", "overlay.jpg"), "application/zip", "mask", "overlay")
    assert list(both.files()) == ["mask.png", "overlay.jpg"]


def test_zip_without_an_asked_output_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswerError, match="lacks overlay"):
        answer(zipped("mask.png"), "application/zip", "mask", "overlay").files()


def test_entry_that_was_not_requested_never_becomes_a_file() -> None:
    content = zipped("../../evil.png", "mask.png", "result.json")
    assert list(answer(content, "application/zip", "mask", "json").files()) == [
        "mask.png",
        "result.json",
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 cut", zipped("mask.png", "color.png")[:60]],
    ids=["empty", "head", "cut"],  # a zip holds the time it was made: no name for a test
)
def test_broken_zip_is_a_bad_answer(content: bytes) -> None:
    with pytest.raises(BadAnswerError):
        answer(content, "application/zip", "mask", "color").files()


def test_outputs_keep_their_order_without_repeats() -> None:
    assert parse_outputs("overlay, mask,overlay") == ("overlay", "mask")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"BM....", "image/bmp"),
        (b"II*\x00", "image/tiff"),
        (b"MM\x00*", "image/tiff"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heif"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "image/avif"),
        (b"\0\0\0\x1cftypisom\0\0\0\0isomiso2", "application/octet-stream"),
        (b"GIF89a", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_media_type_follows_the_bytes(head: bytes, expected: str) -> None:
    assert media_type(head) == expected


def test_timing_tolerates_what_it_does_not_know() -> None:
    assert parse_timing('a;desc="x";dur=1, b, c;dur=no, d;dur="2.5"') == {"a": 1.0, "d": 2.5}


def test_retry_after_takes_seconds_and_dates() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    date = email.utils.format_datetime(soon, usegmt=True)
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    values = [
        retry_after_s(httpx.Response(503, headers={"Retry-After": text}))
        for text in ("2.5", date, past, "soon", "-3", "inf")
    ]
    assert values[0] == 2.5
    assert values[1] == pytest.approx(60, abs=5)
    assert values[2:] == [0.0, None, 0.0, None]


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (
            b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n",
            "413 Request Entity Too Large (a web page, probably of a proxy before the service)",
        ),
        (
            b"<!DOCTYPE html><p>No",
            "No (a web page, probably of a proxy before the service)",
        ),
        (b"upstream connect error", "upstream connect error"),
        (b"", "Request Entity Too Large"),
    ],
)
def test_a_proxys_page_is_told_by_its_title_and_not_as_html(page: bytes, said: str) -> None:
    """nginx answers 413 itself, in HTML, unless it is configured otherwise."""
    assert refusal(httpx.Response(413, content=page)).detail == said
