"""Several photos in one request: one answer, with a status for each photo."""

from __future__ import annotations

import asyncio
import email.policy
import io
import json
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from postprocess.results import outputs
from service.http.app import create_app
from service.inference import models
from service.inference.models import Models
from service.settings import Settings
from tests.service import onnx_models
from tests.service.web import Held, Request, opened, photo, png, serving

Form = list[tuple[str, tuple[str, bytes, str]]]

PHOTOS = [photo(40, 50, 0), photo(30, 64, 1), photo(48, 20, 2)]
NAMES = ["cat.jpg", "dog.png", "sub/cat.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    onnx_models.save(path / "tiny.onnx")
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder, max_files=4, max_pixels=20_000, max_pending_pixels=30_000) as client:
        yield client


def form(bodies: list[bytes], names: list[str]) -> Form:
    pairs = zip(names, bodies, strict=True)
    return [("file", (name, body, "application/octet-stream")) for name, body in pairs]


def photos(images: list[NDArray[np.uint8]] = PHOTOS, names: list[str] = NAMES) -> Form:
    return form([png(image) for image in images], names)


def ask(client: TestClient, files: Form, accept: str = "*/*", **query: Any) -> Any:
    return client.post("/segment", files=files, params=query, headers={"Accept": accept})


def unzipped(answer: Any) -> dict[str, bytes]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def results(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", json.loads(files["results.json"])["results"])


def test_each_photo_has_its_mask_named_after_it(client: TestClient) -> None:
    files = unzipped(ask(client, photos()))
    assert list(files) == ["results.json", "cat.mask.png", "dog.mask.png", "cat-2.mask.png"]
    for image, name in zip(PHOTOS, list(files)[1:], strict=True):
        assert (opened(files[name]) == onnx_models.expected(image)).all()
    assert results(files) == [
        {
            "file": name,
            "status": 200,
            "width": image.shape[1],
            "height": image.shape[0],
            "model": "tiny",
            "model_digest": client.get("/models/tiny").json()["digest"],
            "outputs": {"mask": mask},
        }
        for name, image, mask in zip(NAMES, PHOTOS, list(files)[1:], strict=True)
    ]


NOISE = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)  # a PNG of 43 KB
RAW = {"Content-Type": "image/png"}
LOSSLESS = {"output": "overlay,cutout", "overlay_format": "png"}


def test_files_that_wait_for_those_of_other_photos_count(folder: Path) -> None:
    """Four photos of 86 KB of files each: 413 where all may have 250 KB, and nothing stays held."""
    settings = Settings(models=folder, device="cpu", threads=1, max_pending_bytes=250_000)
    app = create_app(settings, models.load(settings))
    with TestClient(app) as client:
        answer = ask(client, photos([NOISE] * 4, list("abcd")), **LOSSLESS)
        assert (answer.status_code, answer.json()["code"]) == (413, "answer-too-large")
        assert "250000" in answer.json()["detail"]
        assert ask(client, photos([NOISE] * 2, list("ab")), **LOSSLESS).status_code == 200


@pytest.mark.parametrize("query", [LOSSLESS, {"output": "json", "include": "overlay,color,mask"}])
def test_encoding_ends_when_the_answer_is_too_large(
    folder: Path, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    """The overlay exceeds the limit, also inside the JSON: nothing is made after it."""
    made = []
    encode = outputs._encode_one

    def counted(name: str, result: outputs.Result, wish: outputs.Wish) -> bytes:
        made.append(name)
        return encode(name, result, wish)

    monkeypatch.setattr(outputs, "_encode_one", counted)
    with serving(folder, max_pending_bytes=500, decoders=0) as client:
        answer = client.post("/segment", content=png(NOISE), params=query, headers=RAW)
    assert (answer.status_code, answer.json()["code"]) == (413, "answer-too-large")
    assert made[-1] == "overlay"


def test_lossless_pictures_reserve_more_memory(folder: Path) -> None:
    """Two photos of 14,400 pixels fit 30,000; with four lossless pictures of each they do not."""
    with serving(folder, max_pending_pixels=30_000) as client:
        two = photos([NOISE] * 2, list("ab"))
        assert ask(client, two, output="overlay").status_code == 200
        many = {"output": "overlay,cutout,blur,replace", "overlay_format": "png"}
        assert ask(client, two, **many).json()["code"] == "image-too-large"
        assert ask(client, two[:1], **many).status_code == 200


def test_the_same_photos_give_the_same_bytes(client: TestClient) -> None:
    for accept in ("application/zip", "multipart/mixed"):
        first, second = (ask(client, photos(), accept) for _ in range(2))
        assert first.content == second.content


def test_the_masks_are_those_of_single_requests(client: TestClient) -> None:
    files = unzipped(ask(client, photos(), output="mask,json", classes="bright"))
    for image, stem in zip(PHOTOS, ["cat", "dog", "cat-2"], strict=True):
        for output, name in (("mask", "mask.png"), ("json", "result.json")):
            query = {"output": output, "classes": "bright"}
            alone = client.post("/segment", files={"file": png(image)}, params=query)
            assert files[f"{stem}.{name}"] == alone.content


def test_parts_hold_what_the_zip_holds(client: TestClient) -> None:
    names = ["cat.jpg", "Straße ✓.png", "x.png"]
    zipped = unzipped(ask(client, photos(names=names), output="mask,overlay"))
    answer = ask(client, photos(names=names), "multipart/mixed", output="mask,overlay")
    kind = answer.headers["content-type"]
    text = f"Content-Type: {kind}\r\n\r\n".encode() + answer.content
    message = BytesParser(EmailMessage, policy=email.policy.HTTP).parsebytes(text)
    parts = cast("list[EmailMessage]", list(message.iter_parts()))
    assert not message.defects
    found = {str(part.get_filename()): part.get_payload(decode=True) for part in parts}
    assert found.keys() == zipped.keys()
    kinds = [part.get_content_type() for part in parts]
    assert kinds == ["application/json", *["image/png", "image/jpeg"] * 3]
    for name, body in zipped.items():
        assert f"Content-Length: {len(body)}\r\n".encode() in answer.content
        assert body in answer.content, name


def test_a_bad_photo_has_its_problem_and_the_others_their_masks(client: TestClient) -> None:
    large = png(np.zeros((201, 100, 3), np.uint8))
    bodies = [png(PHOTOS[0]), b"junk", large, png(PHOTOS[1])[:-30]]
    files = unzipped(ask(client, form(bodies, ["a.png", "b.png", "c.png", "d.png"])))
    assert list(files) == ["results.json", "a.mask.png"]
    assert (opened(files["a.mask.png"]) == onnx_models.expected(PHOTOS[0])).all()
    assert [entry["status"] for entry in results(files)] == [200, 400, 413, 400]
    codes = [entry["problem"]["code"] for entry in results(files)[1:]]
    assert codes == ["invalid-image", "image-too-large", "invalid-image"]
    assert "JPEG, PNG" in results(files)[1]["problem"]["detail"]
    assert 'deeplab_rejected_total{reason="invalid-image"} ' in client.get("/metrics").text


def test_photos_of_one_request_share_a_batch(folder: Path) -> None:
    settings = Settings(models=folder, device="cpu", threads=1, max_batch=3, max_wait_ms=60_000)
    held = Held(settings)
    with TestClient(create_app(settings, held.models)) as client:
        assert ask(client, photos()).status_code == 200  # a full batch leaves at once
        assert dict(held.models.get(None).batcher.sizes) == {3: 1}


@pytest.mark.parametrize(
    ("files", "accept", "status", "says"),
    [
        (photos([PHOTOS[0]] * 5, ["a"] * 5), "*/*", 400, "number of files is 4"),
        (photos([PHOTOS[0]] * 2, ["a"] * 2), "image/png", 406, "application/zip"),
        (photos([PHOTOS[0]], ["a"]), "application/zip", 406, "a single photo has no such answer"),
        ([*photos(), ("other", ("a", b"x", "image/png"))], "*/*", 400, "every file must be"),
        (photos([photo(110, 110)] * 3, ["a"] * 3), "*/*", 413, "36300 pixels in one request"),
    ],
)
def test_what_cannot_be_answered_is_a_problem(
    client: TestClient, files: Form, accept: str, status: int, says: str
) -> None:
    answer = ask(client, files, accept)
    assert answer.status_code == status
    assert says in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/zip"),
        ("multipart/mixed, application/zip", "application/zip"),
        ("multipart/*", "multipart/mixed"),
        ("application/zip;q=0.5, multipart/mixed;q=0.6", "multipart/mixed"),
    ],
)
def test_accept_chooses_the_packing(client: TestClient, accept: str, kind: str) -> None:
    answer = ask(client, photos(), accept)
    assert answer.headers["content-type"].partition(";")[0] == kind


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.JPG", "cat"),
        ("..", "photo"),
        ("a:b?.png", "a_b_"),
        (".png", "png"),
        ("ä" * 200 + ".png", "ä" * 75),
    ],
)
def test_no_name_leads_out_of_the_folder_it_is_unpacked_in(
    client: TestClient, name: str, stem: str
) -> None:
    files = unzipped(ask(client, photos(PHOTOS[:2], [name, "other.png"])))
    assert list(files) == ["results.json", f"{stem}.mask.png", "other.mask.png"]


@pytest.mark.slow
def test_a_failure_of_the_request_drops_all_of_its_photos(folder: Path) -> None:
    held = Held(Settings(models=folder, device="cpu", threads=1, request_timeout_ms=300))
    with TestClient(create_app(held.settings, held.models)) as client:
        held.gate.clear()
        answer = ask(client, photos())
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")
        held.gate.set()
        assert ask(client, photos()).status_code == 200


def test_a_client_that_leaves_drops_all_of_its_photos(folder: Path) -> None:
    held = Held(Settings(models=folder, device="cpu", threads=1, max_batch=1))
    app = create_app(held.settings, held.models)
    request = httpx.Request("POST", "http://test", files=photos())
    body, kind = request.read(), request.headers["content-type"]

    async def scenario(models: Models) -> None:
        async with app.router.lifespan_context(app):
            batcher = models.get(None).batcher
            held.gate.clear()
            several = Request(app, body, kind)
            await asyncio.to_thread(held.entered.wait, 10)
            while batcher.depth < 2:
                await asyncio.sleep(0.01)
            several.leave()
            await asyncio.wait_for(several.task, 5)  # the engine is still held
            held.gate.set()
            assert several.sent[0]["status"] == 499
        assert dict(batcher.sizes) == {1: 1}  # the one that was running; the others never started

    asyncio.run(scenario(held.models))
