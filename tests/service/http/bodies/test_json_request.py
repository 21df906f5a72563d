"""Photos as base64 in JSON, from the JSON writers that clients use."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.errors import InvalidRequest
from service.http.bodies import json_request
from service.text import STEP
from tests.service import onnx_models
from tests.service.processor_time import ratio
from tests.service.web import opened, photo, png, serving

PHOTO = photo()
TEXT = base64.b64encode(png(PHOTO)).decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    onnx_models.save(folder / "sure.onnx", confidence=True)
    with serving(folder, default_model="tiny", max_body_bytes=200_000) as client:
        yield client


def ask(client: TestClient, body: bytes | str, **query: Any) -> Any:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return client.post("/segment", content=body, headers=kind, params=query)


def test_base64_in_json_gives_the_answer_of_the_bytes(client: TestClient) -> None:
    kind = {"Content-Type": "image/png"}
    raw = client.post("/segment", content=png(PHOTO), headers=kind)
    told = client.post("/segment", json={"image": TEXT})
    assert told.status_code == 200
    assert told.content == raw.content
    assert (opened(told.content) == onnx_models.expected(PHOTO)).all()


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("+", "-").replace("/", "_").rstrip("="),
        base64.encodebytes(png(PHOTO)).decode(),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/png;name=a.png;BASE64,{TEXT}",
    ],
    ids=["url-safe without padding", "line breaks", "data URL", "data URL in capitals"],
)
def test_every_usual_form_of_base64_is_read(client: TestClient, text: str) -> None:
    assert (opened(client.post("/segment", json={"image": text}).content) < 3).all()


@pytest.mark.parametrize(
    ("character", "escape"), [("/", r"\/"), ("+", r"\u002B"), ("+", r"\u002b"), ("=", r"\u003D")]
)
def test_escapes_of_php_and_dotnet_are_read(
    client: TestClient, character: str, escape: str
) -> None:
    """PHP's json_encode escapes slashes, .NET's JsonSerializer plus signs."""
    noise = png(np.random.default_rng(1).integers(0, 256, (40, 49, 3), np.uint8))
    noise += bytes(len(noise) % 3 == 0)  # bytes behind a PNG are ignored; now "=" ends the text
    text = base64.b64encode(noise).decode()
    assert character in text
    body = json.dumps({"image": text}).replace(character, escape)
    assert ask(client, body).status_code == 200


def test_options_can_be_in_the_query_or_in_the_json(client: TestClient) -> None:
    options = {"output": "json", "classes": ["dim", "bright"], "include": "mask"}
    beside = client.post("/segment", json={"image": TEXT, **options}).json()
    query = client.post("/segment", json={"image": TEXT}, params=options).json()
    mixed = {"image": TEXT, "output": ["json"], "include": "mask"}
    assert beside == query
    assert client.post("/segment", json=mixed, params={"classes": "dim,bright"}).json() == query
    assert {found["name"] for found in beside["classes"]} == {"dim", "bright"}


def test_numbers_and_booleans_mean_what_they_mean_in_the_query(client: TestClient) -> None:
    options: dict[str, Any] = {"output": "json", "model": "sure", "min_area": 30, "instances": True}
    options |= {"min_confidence": 0.5, "threshold": None}
    told = client.post("/segment", json={"image": TEXT, **options})
    asked = {**options, "instances": "true"}
    del asked["threshold"]
    same = client.post("/segment", json={"image": TEXT}, params=asked)
    assert told.status_code == 200
    assert told.json() == same.json()
    assert told.headers["x-model"] == "sure"


@pytest.mark.parametrize(
    ("body", "query", "says"),
    [
        ("", {}, "not JSON"),
        ("{", {}, "not JSON"),
        ("[" * 60_000, {}, "not JSON"),
        ('"text"', {}, "not an object"),
        ("{}", {}, "no text `image`"),
        ('{"image": 7}', {}, "no text `image`"),
        ('{"a": {"image": "QUJD"}}', {}, "no text `image`"),
        ('{"image": ""}', {}, "image is empty"),
        ('{"image": "data:image/png,abc"}', {}, "data URL"),
        ('{"image": "QUJDR"}', {}, "wrong length"),
        ('{"image": "QUJD*Q=="}', {}, "not base64"),
        (r'{"image": "\u0041QUJD"}', {}, "not base64"),
        ('{"image": "QUJD', {}, "no end"),
        ('{"image": "QUJD", "image": "QUJD"}', {}, "image is repeated"),
        ('{"image": "QUJD", "alpha": NaN}', {}, "NaN"),
        ('{"image": "QUJD", "alpha": 2}', {}, "alpha"),
        ('{"image": "QUJD", "alpha": {}}', {}, "alpha: send text, a number"),
        ('{"image": "QUJD", "alpha": [1]}', {}, "alpha: send text, a number"),
        ('{"image": "QUJD", "ouput": "json"}', {}, "did you mean output?"),
        ('{"image": "QUJD", "output": "json"}', {"output": "mask"}, "in the query and in the JSON"),
    ],
)
def test_json_that_is_wrong_says_what_to_change(
    client: TestClient, body: str, query: dict[str, str], says: str
) -> None:
    answer = ask(client, body, **query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert says in answer.json()["detail"]


def test_the_limits_of_other_bodies_hold(client: TestClient) -> None:
    assert client.post("/segment", json={"image": "QUJD"}).json()["code"] == "invalid-image"
    assert client.post("/segment", json={"image": "A" * 300_000}).json()["code"] == "body-too-large"
    unknown = client.post("/segment", json={"image": TEXT, "model": "none"})
    assert unknown.json()["code"] == "unknown-model"
    gzip = {"Content-Encoding": "gzip"}
    assert client.post("/segment", json={"image": TEXT}, headers=gzip).status_code == 415


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2**24,
        b'{"image": ' * 2**20,
        b'{"image"' + b" " * 2**24,
        b"{" + b'"a":1,' * 2**21,
        b'{"image": "' + b"A" * 2**24 + b'", "x": [' + b"1," * 2**20,
    ],
    ids=["nested", "images", "spaces", "keys", "numbers"],
)
def test_no_body_takes_long_to_parse(body: bytes) -> None:
    """At most 15 times its digest, measured: 0.1 to 4; Python's json module would take seconds."""

    def refused() -> None:
        with pytest.raises(InvalidRequest):
            json_request.parse(body)

    assert ratio(refused, lambda: hashlib.sha256(body)) < 15


@pytest.mark.parametrize("step", range(6, 40))
def test_escapes_at_the_ends_of_pieces_are_read(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts are cut into pieces, and no escape is; at every length of a piece."""
    monkeypatch.setattr(json_request, "STEP", step)
    text = (
        TEXT.replace("/", r"\/")
        .replace("+", r"\u002B")
        .replace("A", r"A\n")
        .replace("=", r"\u003d")
    )
    assert text.count("\\") > 20
    assert json_request.decode(text.encode()) == png(PHOTO)


@pytest.mark.slow
def test_a_text_of_escapes_is_decoded_in_short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads can run between pieces; decoding 16 MB in one would block them."""
    text, lengths, unescaped = rb"\u002F" * (16 * 2**20 // 6), list[int](), json_request._unescaped

    def counted(piece: bytes) -> bytes:
        lengths.append(len(piece))
        return unescaped(piece)

    monkeypatch.setattr(json_request, "_unescaped", counted)
    with suppress(InvalidRequest):
        json_request.decode(text)
    assert sum(lengths) == len(text)
    assert max(lengths) <= STEP
