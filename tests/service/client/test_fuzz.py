"""Every possible answer gives a result or one of the package's own errors."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.client import protocol
from service.client.batch import class_pixels
from service.client.errors import ClientError, StatusError
from service.client.pictures import size_of
from service.client.plain import cell, plain

from .flaky_server import png, result

pytestmark = pytest.mark.slow

# Numbers beyond floats and 64 bits, NaN, Infinity, lone surrogates and control characters.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=["Cc", "Cs", "Cf"])),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    *("models", "classes", "name", "digest", "default", "palette", "max_side"),
    *("id", "pixels", "confidence", "width", "height", "code", "detail", "title", "request_id"),
]
ENTRY = st.dictionaries(st.sampled_from(FIELDS), JSON)
ENTRIES = st.fixed_dictionaries({}, optional={name: st.lists(ENTRY, max_size=3) for name in FIELDS})
HEADERS = st.dictionaries(
    st.sampled_from([
        *("content-type", "retry-after", "server-timing", "x-request-id", "x-model"),
        *("x-model-digest", "x-execution-provider"),
    ]),
    st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=255)),
        st.sampled_from([
            *("image/png", "image/jpeg", "application/zip", "application/json;charset=hex"),
            *("1e308", "-1", "nan", "9" * 400, "decode;dur=1e999, x;dur", "Fri, 31 Feb 0 -9999"),
        ]),
        st.builds(
            "{}, {} {} {} {}:{}:{} {}".format,
            st.sampled_from(["Mon", "Foo", ""]),
            st.integers(),
            st.sampled_from(["Jan", "Foo"]),
            *[st.integers()] * 4,
            st.sampled_from(["GMT", "+9999999", "-0000"]),
        ),
    ),
)  # fmt: skip


def zipped(name: str, content: bytes, method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
        archive.writestr("mask.png", png(4, 3))
    return buffer.getvalue()


GOOD = [png(4, 3), result("npz", b""), result("json", b"")] + [
    zipped(name, b"x" * 50, method)
    for name in ("overlay.png", "labels.npy")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid answer with some bytes replaced, removed or inserted."""
    content = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(content)


BODIES = st.one_of(
    st.binary(),
    JSON.map(lambda value: json.dumps(value).encode()),
    ENTRIES.map(lambda value: json.dumps(value).encode()),
    damaged(),
    st.integers(1, 200_000).map(lambda depth: b'{"models":' + b"[" * depth),
)


def gives_or_refuses(read: Callable[[], object]) -> None:
    """The only error may be a ClientError, and its text must be safe for a terminal."""
    said = ""
    try:
        read()
    except ClientError as error:
        said = str(error)
    assert plain(said) == said


@settings(max_examples=300, deadline=None)
@given(
    BODIES,
    HEADERS,
    st.integers(200, 599),
    st.lists(st.sampled_from(list(protocol.FILES)), min_size=1, max_size=3, unique=True),
    st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@example(b"[" * 300_000, {}, 400, ["json"], None)
@example(b'{"request_id": 1e999}', {}, 400, ["json"], None)
def test_any_answer_is_a_result_or_a_client_error(
    body: bytes,
    headers: dict[str, str],
    status: int,
    outputs: list[str],
    size: tuple[int, int] | None,
) -> None:
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    response = httpx.Response(status, headers=raw, content=body)
    refusal = protocol.refusal(response)
    assert isinstance(refusal, StatusError)
    assert plain(refusal) == str(refusal)
    assert refusal.request_id is None or isinstance(refusal.request_id, str)
    waiting = protocol.retry_after_s(response)
    assert waiting is None or waiting >= 0
    gives_or_refuses(lambda: protocol.models(response))
    gives_or_refuses(lambda: protocol.segmentation(response, tuple(outputs), size))
    gives_or_refuses(lambda: class_pixels(body))


@given(st.binary() | damaged())
def test_any_bytes_have_a_size_or_none(content: bytes) -> None:
    for signature in (b"", b"\xff\xd8\xff", b"RIFF....WEBP", b"BM", b"II*\0", b"MM\0*"):
        size = size_of(signature + content)
        assert size is None or min(size) > 0


@given(st.text(st.characters()))
def test_no_text_steers_a_terminal_or_a_spreadsheet(text: str) -> None:
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in plain(text))
    plain(text).encode()
    assert cell(text)[:1] not in set("=+-@")
