"""A new file is tried out on live requests before it takes over; clients notice nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.inference import models
from service.inference.contract import METADATA_KEY, InputSize
from service.inference.shadow import Trial
from service.settings import Settings
from tests.service import onnx_models
from tests.service.web import opened, photo, png, post, serving

pytestmark = pytest.mark.slow

PHOTO = photo()
BODY = png(PHOTO)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx_models.save(tmp_path / "tiny.onnx")
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder) as client:
        yield client


def shadow(client: TestClient) -> dict[str, Any]:
    return dict(client.get("/models/tiny").json()["shadow"])


def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.02)


def begin(client: TestClient, folder: Path, **terms: Any) -> Any:
    """Try out a file that knows two of the three classes."""
    onnx_models.save(folder / "tiny.onnx", brightest=1)
    return client.post("/models/tiny/reload", params={"shadow": 1, **terms})


def test_the_shadow_is_compared_and_clients_get_the_served_model(
    client: TestClient, folder: Path
) -> None:
    """Agreement by hand: the labels of the photo, and those with class 2 turned into 1."""
    served = client.get("/models/tiny").json()["digest"]
    assert begin(client, folder).json()["shadow"]["images"] == 0
    for _ in range(3):
        answer = post(client, BODY)
        assert answer.headers["x-model-digest"] == served
        assert opened(answer.content).max() == 2
    until(lambda: shadow(client)["images"] == 3)
    report, labels = shadow(client), onnx_models.expected(PHOTO)
    other = labels.clip(0, 1)
    assert report["agreement"] == pytest.approx(float((labels == other).mean()))
    both, either = (labels == 1) & (other == 1), (labels == 1) | (other == 1)
    assert report["class_agreement"] == {
        "background": 1.0,
        "dim": pytest.approx(both.sum() / either.sum()),
        "bright": 0.0,
    }
    assert (report["verdict"], report["failures"], report["skipped"]) == ("running", 0, 0)
    assert report["digest"] != served
    assert report["seconds"] > 0
    metrics = client.get("/metrics").text
    assert 'deeplab_shadow_images{model="tiny"} 3.0' in metrics


def test_a_shadow_is_promoted_by_request(client: TestClient, folder: Path) -> None:
    digest = begin(client, folder).json()["shadow"]["digest"]
    answer = client.post("/models/tiny/shadow/promote").json()
    assert answer["digest"] == digest
    assert (answer["shadow"]["verdict"], answer["shadow"]["reason"]) == ("promoted", "by request")
    assert opened(post(client, BODY).content).max() == 1


def test_a_shadow_is_dropped_by_request(client: TestClient, folder: Path) -> None:
    served = client.get("/models/tiny").json()["digest"]
    begin(client, folder)
    answer = client.post("/models/tiny/shadow/drop").json()
    assert (answer["digest"], answer["shadow"]["verdict"]) == (served, "dropped")
    assert opened(post(client, BODY).content).max() == 2
    again = client.post("/models/tiny/shadow/drop")
    assert again.status_code == 409
    assert "reload?shadow=0.1 starts one" in again.json()["detail"]


@pytest.mark.parametrize(
    ("least", "verdict", "reason"),
    [(0.5, "promoted", "agree as the trial demands"), (0.99, "dropped", "of the pixels")],
)
def test_thresholds_decide_after_some_images(
    client: TestClient, folder: Path, least: float, verdict: str, reason: str
) -> None:
    """A photo of equal shares of three classes, of which the new file confuses two."""
    begin(client, folder, promote_after=3, least_agreement=least, most_slowdown=1000)
    for _ in range(3):
        post(client, BODY)
    until(lambda: shadow(client)["verdict"] != "running")
    assert shadow(client)["verdict"] == verdict
    assert reason in shadow(client)["reason"]
    assert opened(post(client, BODY).content).max() == (1 if verdict == "promoted" else 2)


def test_a_share_of_the_images_is_compared(client: TestClient, folder: Path) -> None:
    """A share of one in a million sees none of ten images."""
    begin(client, folder, shadow=1e-6)
    for _ in range(10):
        post(client, BODY)
    assert shadow(client)["images"] == 0


def test_each_model_sees_its_own_padding_and_none_is_compared(
    client: TestClient, folder: Path
) -> None:
    """A file that is the same but for its padding agrees everywhere.

    The photo is 40 x 50, the input 48 x 64: in the padding the labels would differ.
    """
    padding = InputSize(policy="fixed", height=48, width=64, pad=(255, 0, 0))
    contract = onnx_models.contract(input=padding).model_dump_json()
    onnx_models.save(folder / "tiny.onnx", {METADATA_KEY: contract})
    client.post("/models/tiny/reload", params={"shadow": 1})
    post(client, BODY)
    until(lambda: shadow(client)["images"] == 1)
    assert shadow(client)["agreement"] == 1.0


def test_a_file_that_pads_photos_less_can_be_tried(client: TestClient, folder: Path) -> None:
    """The inputs of both have the same largest size, so that only the padding differs."""
    contract = onnx_models.contract(input=onnx_models.ALIGNED.whole).model_dump_json()
    onnx_models.save(folder / "tiny.onnx", {METADATA_KEY: contract}, aligned=True)
    client.post("/models/tiny/reload")
    onnx_models.save(folder / "tiny.onnx", aligned=True)
    client.post("/models/tiny/reload", params={"shadow": 1})
    for image in (photo(20, 60), photo(45, 40), photo(49, 65)):
        post(client, png(image))
    until(lambda: shadow(client)["images"] == 3)
    assert (shadow(client)["agreement"], shadow(client)["failures"]) == (1.0, 0)


def test_windows_are_compared_too(client: TestClient, folder: Path) -> None:
    """A photo of four windows counts as four images."""
    begin(client, folder)
    height, width = onnx_models.SIZE
    body = png(photo(2 * height - 16, 2 * width - 16))
    assert post(client, body, fit="sliding", overlap=0.1).status_code == 200
    until(lambda: shadow(client)["images"] + shadow(client)["skipped"] == 4)


def test_the_file_that_is_served_gets_no_shadow(client: TestClient) -> None:
    answer = client.post("/models/tiny/reload", params={"shadow": 0.5})
    assert answer.status_code == 409
    assert "its file is the served one" in answer.json()["detail"]
    assert client.post("/models/tiny/reload", params={"shadow": 0}).status_code == 400


def test_a_reload_keeps_the_last_report(client: TestClient, folder: Path) -> None:
    begin(client, folder)
    client.post("/models/tiny/shadow/drop")
    onnx_models.save(folder / "tiny.onnx", brightest=0)
    client.post("/models/tiny/reload")
    assert shadow(client)["reason"] == "by request"


def test_a_verdict_waits_for_a_reload(folder: Path) -> None:
    """A promotion while another file is loaded would leave the new trial on a retired model."""
    settings = Settings(models=folder, device="cpu", threads=1)
    served = models.load(settings)
    app = create_app(settings, served)

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            onnx_models.save(folder / "tiny.onnx", brightest=1)
            await served.try_out("tiny", None, Trial(1.0))
            onnx_models.save(folder / "tiny.onnx", brightest=0)
            second = asyncio.create_task(served.try_out("tiny", None, Trial(1.0)))
            await asyncio.sleep(0)
            assert served.loading
            await served.settle("tiny", "promoted", "by request")
            await second
            now = served.get("tiny")
            assert (now.shadow, now.past_trial is not None) == (None, True)
            labels = now.engine.run(np.full((1, 48, 64, 3), 255, np.uint8))[0]
            assert labels.max() == 0  # the second trial's file was promoted

    asyncio.run(scenario())


def test_a_service_that_watches_its_folder_tries_nothing_out(folder: Path) -> None:
    with serving(folder, watch_models_s=60) as client:
        answer = begin(client, folder)
    assert answer.status_code == 400
    assert "--watch-models-s" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": ("background", "x", "y")}, "other classes"),
        (
            {"input": InputSize(policy="fixed", height=48, width=32, pad=(0, 0, 0))},
            "another size",
        ),
    ],
)
def test_a_file_that_cannot_be_compared_is_refused(
    client: TestClient, folder: Path, changes: dict[str, Any], says: str
) -> None:
    contract = onnx_models.contract(**changes).model_dump_json()
    onnx_models.save(folder / "tiny.onnx", {METADATA_KEY: contract})
    answer = client.post("/models/tiny/reload", params={"shadow": 0.5})
    assert answer.status_code == 409
    assert says in answer.json()["detail"]
    assert client.get("/models/tiny").json()["shadow"] is None
    assert post(client, BODY).status_code == 200


def test_a_reload_ends_the_trial(client: TestClient, folder: Path) -> None:
    begin(client, folder)
    assert client.post("/models/tiny/reload").json()["changed"] is True
    assert client.post("/models/tiny/shadow/promote").status_code == 409
    assert opened(post(client, BODY).content).max() == 1


def test_another_trial_replaces_the_first(client: TestClient, folder: Path) -> None:
    begin(client, folder)
    onnx_models.save(folder / "tiny.onnx", brightest=0)
    client.post("/models/tiny/reload", params={"shadow": 1})
    post(client, BODY)
    until(lambda: shadow(client)["images"] == 1)
    labels = onnx_models.expected(PHOTO)
    assert shadow(client)["agreement"] == pytest.approx(float(np.mean(labels == 0)))


def test_terms_without_a_shadow_are_refused(client: TestClient) -> None:
    answer = client.post("/models/tiny/reload", params={"promote_after": 5})
    assert answer.status_code == 400
    assert "only with shadow" in answer.json()["detail"]


def test_only_who_may_reload_may_settle(folder: Path) -> None:
    with serving(folder) as client:
        headers = {"X-Forwarded-For": "10.0.0.1"}
        answer = client.post("/models/tiny/shadow/promote", headers=headers)
        assert answer.status_code == 403
