"""`quality=auto`: the most exact operating point that load and deadline allow."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.errors import StartupError
from service.http.app import create_app
from service.inference import models
from service.inference.contract import METADATA_KEY
from service.inference.quality import choose
from service.settings import Settings
from tests.service import onnx_models
from tests.service.web import Held, photo, png, post, serving

BODY = png(photo())


def make_settings(folder: Path, **changes: Any) -> Settings:
    return Settings(models=folder, device="cpu", threads=1, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of one network; `a` is the most exact one."""
    for name in ("a", "b", "c"):
        onnx_models.save(tmp_path / f"{name}.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("load", "remaining_s", "index"),
    [
        (0.0, 30.0, 0),
        (0.33, 30.0, 0),
        (0.34, 30.0, 1),
        (0.67, 30.0, 2),
        (1.0, 30.0, 2),
        (0.0, 1.9, 1),  # the first takes 1 s, more than half of what is left
        (0.0, 0.9, 2),
        (0.0, 0.1, 2),  # too late for each: the cheapest
        (0.34, 0.9, 2),
    ],
)
def test_the_most_exact_point_that_load_and_deadline_allow(
    load: float, remaining_s: float, index: int
) -> None:
    assert choose([1.0, 0.5, 0.2], load, remaining_s) == index


def test_a_request_gets_a_cheaper_point_before_it_is_refused(folder: Path) -> None:
    """Of three slots, each request that is in progress takes one; the fourth gets 503."""
    held = Held(make_settings(folder, max_requests=3, quality="a,b,c"))
    with TestClient(create_app(held.settings, held.models)) as client:
        held.gate.clear()
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(post(client, BODY, quality="auto")))
        first.start()
        assert held.entered.wait(10)
        second = post(client, BODY, quality="auto")
        held.gate.set()
        first.join()
        third = post(client, BODY, quality="auto")
        assert (answers[0].headers["x-model"], answers[0].headers["x-quality"]) == ("a", "1/3")
        assert (second.headers["x-model"], second.headers["x-quality"]) == ("b", "2/3")
        assert third.headers["x-quality"] == "1/3"
        metrics = client.get("/metrics").text
    assert 'deeplab_quality_chosen_total{model="a"} 2.0' in metrics
    assert 'deeplab_quality_chosen_total{model="c"} 0.0' in metrics


def test_a_short_deadline_gets_a_cheaper_point(folder: Path) -> None:
    """Once `a` has taken 0.6 s a photo, a request that has 1 s left gets `b`."""
    settings = make_settings(folder, quality="a,b")
    served = models.load(settings)
    with TestClient(create_app(settings, served)) as client:
        served.get("a").batcher.item_s = 0.6
        hasty = post(client, BODY, headers={"X-Request-Timeout-Ms": "1000"}, quality="auto")
        patient = post(client, BODY, quality="auto")
    assert hasty.headers["x-quality"] == "2/2"
    assert patient.headers["x-quality"] == "1/2"


def test_what_is_asked_for_wrongly_is_refused(folder: Path) -> None:
    with serving(folder, quality="a,b") as client:
        named = post(client, BODY, quality="auto", model="a")
        other = post(client, BODY, quality="best")
        assert "x-quality" not in post(client, BODY).headers
    with serving(folder) as client:
        none = post(client, BODY, quality="auto")
    assert [each.status_code for each in (named, other, none)] == [400] * 3
    assert "leave out model" in named.json()["detail"]
    assert "one operating point" in none.json()["detail"]


@pytest.mark.parametrize("quality", ["a,nobody", "a,other"])
def test_points_that_do_not_belong_together_stop_the_start(folder: Path, quality: str) -> None:
    named = onnx_models.contract(classes=("background", "x", "y")).model_dump_json()
    onnx_models.save(folder / "other.onnx", {METADATA_KEY: named})
    with pytest.raises(StartupError, match=r"--quality: "):
        models.load(make_settings(folder, quality=quality))


def test_a_file_of_other_classes_does_not_replace_a_point(folder: Path) -> None:
    named = onnx_models.contract(classes=("background", "x", "y")).model_dump_json()
    with serving(folder, quality="a,b") as client:
        onnx_models.save(folder / "b.onnx", {METADATA_KEY: named})
        onnx_models.save(folder / "c.onnx", {METADATA_KEY: named})
        refused = client.post("/models/b/reload")
        allowed = client.post("/models/c/reload")
    assert refused.status_code == 409
    assert "b has other classes than a" in refused.json()["detail"]
    assert allowed.json()["changed"] is True
