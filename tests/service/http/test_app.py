"""The HTTP interface as a client sees it, with a tiny model."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import os
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from service.client import Client
from service.client.plain import sentence
from service.errors import InvalidImage, StartupError
from service.http import header_text
from service.http.app import create_app
from service.inference import cpus, models
from service.inference.batcher import MAX_FAILURES
from service.inference.engine import Prediction
from service.settings import Settings
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import Held, Request, end_session


def make_settings(folder: Path, **changes: Any) -> Settings:
    return Settings(models=folder, device="cpu", threads=1, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    onnx_models.save(path / "tiny.onnx")
    onnx_models.save(path / "twin.onnx")
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    settings = make_settings(folder, max_pixels=20_000, max_body_bytes=200_000)
    with TestClient(create_app(settings, models.load(settings))) as client:
        yield client


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def post(client: TestClient, body: bytes, kind: str = "image/png", **query: Any) -> Any:
    return client.post("/segment", content=body, headers={"Content-Type": kind}, params=query)


def opened(body: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(body)))


def test_a_body_and_a_multipart_field_give_the_same_mask(
    client: TestClient, photo: NDArray[np.uint8]
) -> None:
    raw = post(client, png(photo))
    form = client.post("/segment", files={"file": ("photo.png", png(photo), "image/png")})
    assert raw.status_code == form.status_code == 200
    assert raw.content == form.content
    assert raw.headers["content-type"] == "image/png"
    assert (opened(raw.content) == onnx_models.expected(photo)).all()


def test_the_answer_says_what_ran(client: TestClient, photo: NDArray[np.uint8]) -> None:
    headers = post(client, png(photo)).headers
    assert headers["x-model"] == "tiny"
    assert headers["x-execution-provider"] == "CPUExecutionProvider"
    assert len(headers["x-model-digest"]) == 64
    stages = [part.partition(";")[0] for part in headers["server-timing"].split(", ")]
    assert stages == ["decode", "queue", "infer", "encode"]


def test_a_request_id_is_kept_or_created(client: TestClient, photo: NDArray[np.uint8]) -> None:
    kept = client.get("/livez", headers={"X-Request-ID": "mine-1"})
    assert kept.headers["x-request-id"] == "mine-1"
    assert len(client.get("/livez").headers["x-request-id"]) == 32
    assert client.get("/livez", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"


def test_colour_and_npz_hold_the_same_labels(client: TestClient, photo: NDArray[np.uint8]) -> None:
    labels = onnx_models.expected(photo)
    color = post(client, png(photo), output="color")
    assert (opened(color.content) == np.array(onnx_models.PALETTE)[labels]).all()
    array = post(client, png(photo), output="npz")
    with np.load(io.BytesIO(array.content), allow_pickle=False) as archive:
        assert (archive["labels"] == labels).all()


def test_an_overlay_without_opacity_is_the_photo(
    client: TestClient, photo: NDArray[np.uint8]
) -> None:
    smooth = np.full((40, 50, 3), 120, np.uint8)
    answer = post(client, png(smooth), output="overlay", alpha=0)
    assert answer.headers["content-type"] == "image/jpeg"
    assert np.abs(opened(answer.content).astype(int) - 120).max() <= 2
    assert np.abs(opened(post(client, png(smooth), output="overlay").content) - 120).max() > 20


def test_json_counts_what_the_mask_shows(client: TestClient, photo: NDArray[np.uint8]) -> None:
    answer = post(client, png(photo), output="json", include="mask").json()
    labels = onnx_models.expected(photo)
    assert (answer["width"], answer["height"]) == (50, 40)
    assert {found["name"]: found["pixels"] for found in answer["classes"]} == {
        name: int((labels == index).sum()) for index, name in enumerate(onnx_models.CLASSES)
    }
    assert (opened(base64.b64decode(answer["mask"]["base64"])) == labels).all()


def test_several_outputs_come_as_a_zip(client: TestClient, photo: NDArray[np.uint8]) -> None:
    answer = post(client, png(photo), output="mask,overlay,json,rle")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["mask.png", "overlay.jpg", "result.json", "rle.json"]
        assert (opened(archive.read("mask.png")) == onnx_models.expected(photo)).all()
        assert json.loads(archive.read("result.json"))["width"] == 50


@pytest.mark.parametrize("size", [(48, 64), (1, 1), (96, 128), (33, 100), (100, 33)])
def test_a_mask_always_has_the_photos_size(client: TestClient, size: tuple[int, int]) -> None:
    answer = post(client, png(np.full((*size, 3), 200, np.uint8)))
    mask = opened(answer.content)
    assert mask.shape == size
    assert (mask == 2).all()  # no padding shows


def test_models_are_chosen_by_name(client: TestClient, photo: NDArray[np.uint8]) -> None:
    assert post(client, png(photo), model="twin").headers["x-model"] == "twin"
    listed = client.get("/models").json()["models"]
    assert [(model["name"], model["default"]) for model in listed] == [
        ("tiny", True),
        ("twin", False),
    ]
    assert client.get("/models/twin").json()["classes"] == list(onnx_models.CLASSES)


@pytest.mark.parametrize(
    ("body", "kind", "query", "status", "code", "says"),
    [
        (b"", "image/png", {}, 400, "invalid-image", "empty"),
        (b"hello", "image/png", {}, 400, "invalid-image", "JPEG, PNG"),
        (b"GIF89a" + bytes(99), "image/png", {}, 400, "invalid-image", "JPEG, PNG"),
        (b"x", "text/plain", {}, 415, "unsupported-media-type", "image/jpeg"),
        (b"x" * 200_001, "image/png", {}, 413, "body-too-large", "200000"),
        (None, "image/png", {"output": "masks"}, 400, "invalid-request", "choose from mask"),
        (None, "image/png", {"output": ","}, 400, "invalid-request", "choose from mask"),
        (None, "image/png", {"include": "npz"}, 400, "invalid-request", "choose from mask"),
        (None, "image/png", {"include": "mask"}, 400, "invalid-request", "output=json"),
        (None, "image/png", {"model": "none"}, 404, "unknown-model", "tiny, twin"),
        (None, "image/png", {"alpha": "2"}, 400, "invalid-request", "alpha"),
        (None, "image/png", {"alpha": "half"}, 400, "invalid-request", "alpha"),
        (
            None,
            "image/png",
            {"class": "dim"},
            400,
            "invalid-request",
            "class='dim': unknown parameter; did you mean classes?",
        ),
        (
            None,
            "image/png",
            {"outptu": "json"},
            400,
            "invalid-request",
            "outptu='json': unknown parameter; did you mean output?",
        ),
        (
            None,
            "image/png",
            {"zzz": "1"},
            400,
            "invalid-request",
            "zzz='1': unknown parameter; choose from output, model, quality, classes",
        ),
        (b"x", "", {}, 415, "unsupported-media-type", "Content-Type is missing"),
    ],
)
def test_bad_input_is_answered_with_a_problem_and_the_next_request_works(
    client: TestClient,
    photo: NDArray[np.uint8],
    body: bytes | None,
    kind: str,
    query: dict[str, str],
    status: int,
    code: str,
    says: str,
) -> None:
    answer = post(client, png(photo) if body is None else body, kind, **query)
    problem = answer.json()
    assert answer.status_code == problem["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code
    assert problem["type"].endswith(code)
    assert says in problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert post(client, png(photo)).status_code == 200


@pytest.mark.parametrize(
    ("charset", "disposition", "says"),
    [
        ("undefined", 'name="file"; filename="a.png"', "leave charset out"),
        ("utf-8", 'name="file"', "add a filename"),
        ("utf-8", 'name="photo"', "the form has no field `file`"),
    ],
)
def test_a_form_that_holds_no_photo_is_a_problem(
    client: TestClient, photo: NDArray[np.uint8], charset: str, disposition: str, says: str
) -> None:
    head = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = post(client, head + png(photo)[:20] + b"\r\n--x--\r\n", kind)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert says in answer.json()["detail"]


def test_a_truncated_photo_is_a_problem(client: TestClient, photo: NDArray[np.uint8]) -> None:
    answer = post(client, png(photo)[:-100])
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-image")


def test_too_many_pixels_are_a_problem(client: TestClient) -> None:
    answer = post(client, png(np.zeros((201, 100, 3), np.uint8)))
    assert (answer.status_code, answer.json()["code"]) == (413, "image-too-large")


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        ([("photo", ("a.png", b"x"))], "the form has no field `file`; it has 'photo'"),
        ([("file", ("a.png", b"x")), ("file", ("", b"x"))], "field `file` is text, not a file"),
    ],
)
def test_a_form_without_the_field_or_a_file_name_is_a_problem(
    client: TestClient, sent: list[tuple[str, tuple[str, bytes]]], detail: str
) -> None:
    answer = client.post("/segment", files=sent)
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


def test_options_in_a_form_are_refused_not_ignored(
    client: TestClient, photo: NDArray[np.uint8]
) -> None:
    answer = client.post("/segment", files={"file": png(photo)}, data={"output": "json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert "['output'] are not read: put options into the query string" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["image/jpg", "image/tif", "image/x-ms-bmp"])
def test_a_media_type_by_its_common_name_is_accepted(
    client: TestClient, photo: NDArray[np.uint8], kind: str
) -> None:
    assert post(client, png(photo), kind).status_code == 200


def test_a_large_form_is_read_without_a_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container with a read-only root has no place for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    large = png(np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8))
    assert len(large) > 1_500_000
    settings = make_settings(folder)
    with TestClient(create_app(settings, models.load(settings))) as client:
        assert client.post("/segment", files={"file": large}).status_code == 200


def test_a_streamed_body_is_limited_while_it_comes_in(client: TestClient) -> None:
    chunks = (bytes(50_000) for _ in range(100))
    answer = client.post("/segment", content=chunks, headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")


def test_an_unknown_path_is_a_problem(client: TestClient) -> None:
    answer = client.get("/nothing")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not-found"
    assert answer.json()["detail"] == "GET /nothing does not exist: see /docs"


def test_another_method_is_told_which_one_to_send(client: TestClient) -> None:
    answer = client.get("/segment")
    assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
    assert answer.json()["detail"] == "/segment does not take GET: send POST"


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/models", "/docs", "/v2"])
def test_head_is_answered_wherever_get_is(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == 200
    assert "head" not in client.get("/openapi.json").json()["paths"].get(path, {})


def test_bodies_that_do_not_arrive_occupy_no_slot(folder: Path, photo: NDArray[np.uint8]) -> None:
    """With one slot, three slow bodies do not keep a fourth photo from its answer."""
    settings = make_settings(folder, max_requests=1)
    app = create_app(settings, models.load(settings))

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            slow = [Request(app, None, "image/png") for _ in range(3)]
            await asyncio.sleep(0.05)
            quick = Request(app, png(photo), "image/png")
            await quick.task
            assert quick.sent[0]["status"] == 200
            for each in slow:
                each.leave()
            await asyncio.gather(*(each.task for each in slow))

    asyncio.run(scenario())


def test_bodies_and_answers_count_until_they_are_sent(
    folder: Path, photo: NDArray[np.uint8]
) -> None:
    """While a client reads no large answer, another large one gets 503, a small one 200."""
    settings = make_settings(folder, max_pending_bytes=6 * 2**20, max_body_bytes=2**25)
    app = create_app(settings, models.load(settings))
    noise = png(np.random.default_rng(0).integers(0, 256, (900, 800, 3), np.uint8))
    assert 2 * 2**20 < len(noise) < 3 * 2**20

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            reads = asyncio.Event()
            first = Request(app, noise, "image/png", "output=overlay&overlay_format=png", reads)
            while not first.sent:
                await asyncio.sleep(0.01)
            assert first.sent[0]["status"] == 200
            second = Request(app, noise, "image/png")
            small = Request(app, png(photo), "image/png")
            await asyncio.gather(second.task, small.task)
            assert second.sent[0]["status"] == 503
            assert small.sent[0]["status"] == 200
            reads.set()
            await first.task
            third = Request(app, noise, "image/png")
            await third.task
            assert third.sent[0]["status"] == 200

    asyncio.run(scenario())


def test_an_answer_beyond_all_pending_bytes_is_413(folder: Path) -> None:
    """A small photo whose overlay as PNG is larger than all pending bytes gets 413."""
    settings = make_settings(folder, max_pending_bytes=50_000)
    smooth = io.BytesIO()
    Image.effect_noise((400, 400), 90).convert("RGB").save(smooth, "JPEG", quality=10)
    with TestClient(create_app(settings, models.load(settings))) as client:
        answer = post(client, smooth.getvalue(), output="overlay", overlay_format="png")
        assert (answer.status_code, answer.json()["code"]) == (413, "answer-too-large")
        assert "the limit is 50000" in answer.json()["detail"]
        assert post(client, smooth.getvalue()).status_code == 200


def test_overload_is_refused_with_retry_after(folder: Path, photo: NDArray[np.uint8]) -> None:
    held = Held(make_settings(folder, max_requests=1))
    with TestClient(create_app(held.settings, held.models)) as client:
        held.gate.clear()
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(post(client, png(photo))))
        first.start()
        assert held.entered.wait(10)
        refused = post(client, png(photo))
        held.gate.set()
        first.join()
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert answers[0].status_code == 200
        assert post(client, png(photo)).status_code == 200


def test_overload_is_refused_before_the_body_is_read(
    folder: Path, photo: NDArray[np.uint8]
) -> None:
    """If bodies waited in memory, an overloaded service could run out of it."""
    held = Held(make_settings(folder, max_requests=1))
    app = create_app(held.settings, held.models)

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            held.gate.clear()
            first = Request(app, png(photo), "image/png")
            await asyncio.to_thread(held.entered.wait, 10)
            second = Request(app, None, "image/png")  # its body never arrives
            await asyncio.wait_for(second.task, 5)
            assert second.sent[0]["status"] == 503
            held.gate.set()
            await first.task
            assert first.sent[0]["status"] == 200

    asyncio.run(scenario())


def test_probes_are_answered_while_everything_else_is_busy(
    folder: Path, photo: NDArray[np.uint8]
) -> None:
    """If probes waited for other work, a busy service would be restarted."""
    held = Held(make_settings(folder, max_batch=1))
    stuck, entered = threading.Event(), threading.Semaphore(0)

    def decode(*_: object, **__: object) -> None:
        entered.release()
        assert stuck.wait(20)
        raise InvalidImage("never mind")

    with TestClient(create_app(held.settings, held.models)) as client:
        held.gate.clear()
        with ThreadPoolExecutor(50) as clients, pytest.MonkeyPatch.context() as patch:
            waiting = [clients.submit(post, client, png(photo))]
            assert held.entered.wait(10)
            patch.setattr("service.images.imaging.open_checked", decode)
            threads = cpus.available() + 1  # one more than decode at once
            waiting += [clients.submit(post, client, png(photo)) for _ in range(threads)]
            for _ in range(threads):
                assert entered.acquire(timeout=10)
            for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"):
                assert client.get(path).status_code == 200
            assert not any(each.done() for each in waiting)
            stuck.set()
            held.gate.set()
        assert [each.result().status_code for each in waiting] == [200] + [400] * threads


PNG = {"Content-Type": "image/png"}
PLAIN = {"Content-Encoding": "identity"}
PREFLIGHT = {
    "Origin": "https://a.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-request-timeout-ms,"
    "traceparent,tracestate",
}


def test_pages_of_other_origins_are_not_allowed_by_default(client: TestClient) -> None:
    assert client.options("/segment", headers=PREFLIGHT).status_code == 405
    answer = client.get("/models", headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_pages_of_named_origins_may_ask_and_read(folder: Path, photo: NDArray[np.uint8]) -> None:
    """The browser's preflight has no key; the page can also read the refusal of a key."""
    settings = make_settings(folder, cors_origins="https://a.example", api_keys="0" * 64)
    with TestClient(create_app(settings, models.load(settings))) as client:
        asked = client.options("/segment", headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://a.example"
        other = client.options("/segment", headers=PREFLIGHT | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = client.post("/segment", content=png(photo), headers=PREFLIGHT)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        assert "X-Model" in refused.headers["access-control-expose-headers"]
        long = client.get(f"/models?{'&'.join(['a=1'] * 501)}", headers=PREFLIGHT)
        assert (long.status_code, "501 parameters" in long.json()["detail"]) == (400, True)
        assert long.headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/page", "https://"])
def test_an_origin_with_a_path_is_refused(folder: Path, origin: str) -> None:
    with pytest.raises(ValueError, match="an origin is scheme, host and port"):
        make_settings(folder, cors_origins=origin)


def test_an_address_is_never_fetched(client: TestClient) -> None:
    """Services that accept image URLs can be abused to send requests (SSRF)."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.png"
        for form in ({"file": url}, {"url": url}):
            answer = client.post("/segment", data=form, files={"x": b""})
            assert answer.status_code == 400
        assert post(client, url.encode()).status_code == 400
        assert post(client, b"", url=url).status_code == 400
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_a_deadline_is_answered_with_504(folder: Path, photo: NDArray[np.uint8]) -> None:
    held = Held(make_settings(folder, request_timeout_ms=30))
    with TestClient(create_app(held.settings, held.models)) as client:
        held.gate.clear()
        answer = post(client, png(photo))
        held.gate.set()
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "1e3", "", "99999999999"])
def test_a_timeout_that_is_no_number_of_milliseconds_is_a_problem(
    client: TestClient, photo: NDArray[np.uint8], limit: str
) -> None:
    headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": limit}
    answer = client.post("/segment", content=png(photo), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert "X-Request-Timeout-Ms" in answer.json()["detail"]


@pytest.mark.slow
def test_a_deadline_of_the_client_covers_decoding(folder: Path) -> None:
    settings = make_settings(folder)
    large = png(np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8))
    with TestClient(create_app(settings, models.load(settings))) as client:
        headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": "20"}
        answer = client.post("/segment", content=large, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")


def test_an_engine_failure_is_a_500_without_a_traceback(
    folder: Path, photo: NDArray[np.uint8]
) -> None:
    settings = make_settings(folder)
    loaded = models.load(settings)

    def fail(_: NDArray[np.uint8]) -> list[Prediction]:
        raise RuntimeError("secret detail")

    with TestClient(create_app(settings, loaded)) as client:
        session = loaded.get(None).batcher.sessions[0]
        run, session.run = session.run, fail
        failed = post(client, png(photo))
        session.run = run
        assert (failed.status_code, failed.json()["code"]) == (500, "inference-failed")
        assert "secret" not in failed.text
        assert post(client, png(photo)).status_code == 200


def test_a_connection_that_a_failure_ends_says_so(
    folder: Path, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("postprocess.results.encoders.mask_png", fail)
    settings = make_settings(folder)
    app = create_app(settings, models.load(settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        failed = post(client, png(photo))
    assert (failed.status_code, failed.json()["code"]) == (500, "internal-error")
    assert "secret" not in failed.text
    assert failed.headers["connection"] == "close"


def test_readiness_is_red_before_the_start_and_after_the_last_dead_loop(folder: Path) -> None:
    settings = make_settings(folder, sessions=2)
    loaded = models.load(settings)
    loaded.get(None).revive = lambda: None
    assert not loaded.healthy
    with TestClient(create_app(settings, loaded)) as client:
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        for alive in (1, 0):
            end_session(loaded, alive)
            while loaded.get(None).batcher.live_sessions > alive:
                pass
            assert client.get("/readyz").status_code == (200 if alive else 503)
            assert f'deeplab_sessions{{model="tiny"}} {alive}.0' in client.get("/metrics").text
        assert client.get("/livez").status_code == 200


def test_a_model_whose_sessions_have_died_is_loaded_again(
    folder: Path, photo: NDArray[np.uint8]
) -> None:
    """After running out of memory, a GPU session may fail on every run until it is recreated."""
    settings = make_settings(folder)
    loaded = models.load(settings)

    def fail(_: NDArray[np.uint8]) -> list[Prediction]:
        raise RuntimeError("out of memory")

    with TestClient(create_app(settings, loaded)) as client:
        loaded.get(None).batcher.sessions[0].run = fail
        answers = [post(client, png(photo)).status_code for _ in range(MAX_FAILURES)]
        assert answers == [500] * MAX_FAILURES
        for _ in range(500):
            if client.get("/readyz").status_code == 200:
                break
            time.sleep(0.01)
        answer = post(client, png(photo))
        assert (opened(answer.content) == onnx_models.expected(photo)).all()


def test_a_client_that_disconnects_frees_its_slot(folder: Path, photo: NDArray[np.uint8]) -> None:
    held = Held(make_settings(folder, max_requests=1))
    app = create_app(held.settings, held.models)

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            held.gate.clear()
            request = Request(app, png(photo), "image/png")
            await asyncio.to_thread(held.entered.wait, 10)
            request.leave()
            await asyncio.wait_for(request.task, 5)  # the engine is still held
            held.gate.set()
            assert request.sent[0]["status"] == 499

    asyncio.run(scenario())


def test_an_empty_models_folder_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="python -m export"):
        models.load(make_settings(tmp_path))


def test_an_unknown_default_model_refuses_to_start(folder: Path) -> None:
    with pytest.raises(StartupError, match="tiny, twin"):
        models.load(make_settings(folder, default_model="none"))


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
def test_a_compressed_body_is_named_and_not_called_a_broken_photo(
    client: TestClient, photo: NDArray[np.uint8], encoding: str
) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": encoding}
    answer = client.post("/segment", content=gzip.compress(png(photo)), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
    assert answer.json()["detail"].startswith(f"Content-Encoding {encoding}")
    plain = client.post("/segment", content=png(photo), headers=headers | PLAIN)
    assert plain.status_code == 200


def test_a_photo_as_base64_in_a_form_is_named(client: TestClient, photo: NDArray[np.uint8]) -> None:
    headers = {"Content-Transfer-Encoding": "base64"}
    part = ("a.png", base64.b64encode(png(photo)), "image/png", headers)
    answer = client.post("/segment", files={"file": part})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
    assert "base64" in answer.json()["detail"]


def test_labels_are_the_same_whatever_else_is_asked_for(folder: Path) -> None:
    """A JPEG is decoded at a fraction of its size for a mask, and as a whole for an overlay."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((1600, 1200)).save(out, "JPEG")
    with TestClient(create_app(make_settings(folder), models.load(make_settings(folder)))) as open_:
        alone = post(open_, out.getvalue(), "image/jpeg").content
        for output in ("mask,overlay", "mask,color,npz,overlay,json"):
            answer = post(open_, out.getvalue(), "image/jpeg", output=output)
            with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
                assert archive.read("mask.png") == alone


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("max_side", "size"), [(80, (80, 60)), (16, (16, 12)), (1, (1, 1)), (999, (160, 120))]
)
def test_pictures_can_be_limited_in_size(
    client: TestClient, kind: str, max_side: int, size: tuple[int, int]
) -> None:
    """The photo is shrunk, each pixel has the label nearest to its centre, the JSON stays."""
    across = np.linspace(0, 255, 160)[None, :, None]
    picture = (np.ones((120, 1, 3)) * across).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind)
    sent = (out.getvalue(), f"image/{kind.lower()}")
    asked: dict[str, Any] = {"overlay_format": "png", "max_side": max_side}
    clear = opened(post(client, *sent, output="overlay", alpha=0, **asked).content)
    assert clear.shape == (*size[::-1], 3)
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    assert np.abs(clear.astype(int) - small).mean() < 2
    whole = opened(post(client, *sent, output="mask").content)
    at = np.ix_(*(((np.arange(n) + 0.5) * 160 // size[0]).astype(int) for n in size[::-1]))
    labels = whole[at]
    assert (opened(post(client, *sent, output="mask", **asked).content) == labels).all()
    colors = np.array(onnx_models.PALETTE)[labels]
    assert (opened(post(client, *sent, output="color", **asked).content) == colors).all()
    solid = opened(post(client, *sent, output="overlay", alpha=1, **asked).content)
    shown = labels != 0  # the background stays clear
    assert (solid[shown] == colors[shown]).all()
    assert (solid[~shown] == clear[~shown]).all()
    beside = opened(post(client, *sent, output="side-by-side", **asked).content)
    assert beside.shape == (size[1], 2 * size[0], 3)
    found = post(client, *sent, output="json", include="mask", **asked).json()
    assert (found["width"], found["height"]) == (160, 120)
    assert sum(each["pixels"] for each in found["classes"]) == 160 * 120
    assert opened(base64.b64decode(found["mask"]["base64"])).shape == size[::-1]


@pytest.mark.parametrize("fit", ["resize", "sliding"])
def test_a_limited_overlay_is_turned_as_the_photo(client: TestClient, fit: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    out = io.BytesIO()
    Image.new("RGB", (120, 60), (9, 200, 9)).save(out, "JPEG", exif=exif)
    answer = post(
        client, out.getvalue(), "image/jpeg", output="overlay", alpha=0, fit=fit, max_side=40
    )
    assert opened(answer.content).shape == (40, 20, 3)
    assert np.abs(opened(answer.content).astype(int) - (9, 200, 9)).max() < 6


def test_a_repeated_key_is_a_list_where_a_list_makes_sense(
    client: TestClient, photo: NDArray[np.uint8]
) -> None:
    """Otherwise only the last would count: `classes=1&classes=2` would find class 2 alone."""
    both = post(client, png(photo), output="mask", classes=["dim", "2"])
    assert both.status_code == 200
    assert both.content == post(client, png(photo), output="mask", classes="dim,2").content
    assert both.content != post(client, png(photo), output="mask", classes="2").content
    answer = post(client, png(photo), output=["json", "mask"], include=["mask", "color"])
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["result.json", "mask.png"]
        assert {"mask", "color"} <= json.loads(archive.read("result.json")).keys()


@pytest.mark.parametrize(
    "query", [{"model": ["tiny", "twin"]}, {"alpha": ["0", "1"]}, {"fit": ["resize", "resize"]}]
)
def test_a_repeated_key_is_refused_where_only_one_could_count(
    client: TestClient, photo: NDArray[np.uint8], query: dict[str, Any]
) -> None:
    answer = post(client, png(photo), **query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert f"{next(iter(query))} is repeated, send it once" in answer.json()["detail"]


def test_a_repeated_deadline_is_refused(client: TestClient, photo: NDArray[np.uint8]) -> None:
    headers = [("Content-Type", "image/png"), *[("X-Request-Timeout-Ms", "5000")] * 2]
    answer = client.post("/segment", content=png(photo), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("digest=a&digest=b", "digest is repeated"),
        ("digst=" + "0" * 64, "unknown parameter; did you mean digest?"),
        ("output=json", "unknown parameter; choose from digest"),
    ],
)
def test_a_reload_whose_digest_would_not_be_checked_is_refused(
    client: TestClient, query: str, says: str
) -> None:
    answer = client.post(f"/models/tiny/reload?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert says in answer.json()["detail"]


@pytest.mark.slow
def test_models_of_any_name_are_served(tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    """A real server names them in its answers' headers, which hold Latin-1 only."""
    names = ["модель", "été", "100% 'x'\n", "UTF-8''a"]
    for name in names:
        onnx_models.save(tmp_path / f"{name}.onnx")
    with running(tmp_path) as (url, _), Client(url) as asking:
        answer = httpx.get(f"{url}/models").json()["models"]
        assert sorted(model["name"] for model in answer) == sorted(names)
        for name in names:
            named = {"model": name}
            assert asking.segment(png(photo), model=name).model == sentence(name)
            answer = httpx.post(f"{url}/segment", content=png(photo), params=named, headers=PNG)
            assert answer.status_code == 200
            assert header_text.decoded(answer.headers["x-model"]) == name
            assert answer.headers["x-model"].isascii()


def test_a_model_whose_name_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    (tmp_path / "tiny.onnx").rename(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.onnx"))
    with pytest.raises(StartupError, match="not UTF-8"):
        models.load(make_settings(tmp_path))


@pytest.mark.parametrize("scale", [1, 30])
def test_a_grey_mask_holds_the_ids_for_tools_that_take_a_palette_for_colours(
    client: TestClient, photo: NDArray[np.uint8], scale: int
) -> None:
    """`cv2.imread(mask, -1)` gives RGB of a palette PNG, and the ids of a grey one."""
    body = png(np.repeat(np.repeat(photo[:10, :10], scale, 0), scale, 1)[:140, :140])
    palette = post(client, body)
    grey = post(client, body, mask_format="gray")
    assert (palette.content[25], grey.content[25]) == (3, 0)  # the colour type in IHDR
    assert Image.open(io.BytesIO(grey.content)).mode == "L"
    assert (opened(grey.content) == opened(palette.content)).all()
    inside = post(client, body, output="json", include="mask", mask_format="gray").json()
    assert base64.b64decode(inside["mask"]["base64"]) == grey.content
