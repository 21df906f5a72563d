"""The metrics, read with Prometheus' own parser."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from tests.service import onnx_models
from tests.service.web import photo, png, post, serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx_models.save(tmp_path / "tiny.onnx")
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder) as client:
        yield client


def scrape(client: TestClient, headers: dict[str, str] | None = None) -> dict[str, float]:
    """Sample -> value; labels in the order of their names."""
    text = client.get("/metrics", headers=headers).text
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_request_is_counted_by_route_and_status(client: TestClient) -> None:
    for _ in range(3):
        assert post(client, png(photo())).status_code == 200
    post(client, b"junk")
    client.get("/models/none")
    client.get("/no/such/path")
    client.request("BREW", "/livez")
    found = scrape(client)
    assert found["deeplab_requests_total method=POST route=/segment status=200"] == 3
    assert found["deeplab_requests_total method=POST route=/segment status=400"] == 1
    assert found["deeplab_requests_total method=GET route=/models/{name} status=404"] == 1
    assert found["deeplab_requests_total method=GET route=none status=404"] == 1
    assert found["deeplab_requests_total method=other route=/livez status=405"] == 1
    assert found["deeplab_rejected_total reason=invalid-image"] == 1
    assert found["deeplab_rejected_total reason=unknown-model"] == 1
    assert found["deeplab_requests_in_flight"] == 0  # this scrape is not counted as load


def test_stages_pixels_and_batches_add_up(client: TestClient) -> None:
    for _ in range(5):
        post(client, png(photo(30, 20)))
    found = scrape(client)
    for stage in ("decode", "queue", "infer", "encode"):
        assert found[f"deeplab_stage_duration_seconds_count stage={stage}"] == 5
    assert found["deeplab_pixels_total"] == 5 * 30 * 20
    assert found["deeplab_batch_size_sum model=tiny"] == 5
    assert found["deeplab_batch_size_count model=tiny"] == 5
    assert found["deeplab_batch_size_bucket le=1 model=tiny"] == 5
    assert found["deeplab_queue_depth model=tiny"] == 0
    assert found["deeplab_ready"] == 1


def test_the_model_and_what_it_runs_on_are_named(client: TestClient) -> None:
    model = client.get("/models/tiny").json()
    sample = (
        f"deeplab_model_info digest={model['digest']} execution_precision=fp32"
        " execution_provider=CPUExecutionProvider model=tiny precision=fp32"
    )
    found = scrape(client)
    assert found[sample] == 1
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_cpu_seconds_total"] > 0


def test_two_services_in_one_process_count_apart(folder: Path) -> None:
    with serving(folder) as first, serving(folder) as second:
        post(first, png(photo()))
        assert scrape(first)["deeplab_pixels_total"] == 40 * 50
        assert scrape(second)["deeplab_pixels_total"] == 0


def test_what_alerts_read_is_zero_before_the_first_error(client: TestClient) -> None:
    """A rate needs two values. A series that begins with its first error would hide that error."""
    found = scrape(client)
    for status in (200, 499, 500, 503, 504):
        assert found[f"deeplab_requests_total method=POST route=/segment status={status}"] == 0
    for code in ("overloaded", "deadline-exceeded", "inference-failed", "internal-error"):
        assert found[f"deeplab_rejected_total reason={code}"] == 0
    assert found["deeplab_request_duration_seconds_count route=/segment"] == 0
    assert found["deeplab_stage_duration_seconds_count stage=infer"] == 0
    # Alerts on failures sum over all routes.
    for status in (500, 503, 504):
        assert found[f"deeplab_requests_total method=GET route=/models status={status}"] == 0
        sample = f"deeplab_requests_total method=POST route=/models/{{name}}/reload status={status}"
        assert found[sample] == 0


def test_a_request_refused_by_middleware_counts_for_its_route(folder: Path) -> None:
    """These requests were never routed. Without this, each would start a series of its own."""
    key = {"Authorization": "Bearer first"}
    digest = hashlib.sha256(b"first").hexdigest()
    with serving(folder, api_keys=digest, rate_limit_per_minute=1, max_body_bytes=2000) as client:
        before = scrape(client, key)
        statuses = [
            post(client, b"x").status_code,
            post(client, b"x" * 3000, headers=key).status_code,
            post(client, b"x", headers=key).status_code,
            client.get("/models/tiny").status_code,
            client.put("/segment").status_code,
            client.get("/nowhere").status_code,
        ]
        found = scrape(client, key)
    assert statuses == [401, 413, 429, 401, 401, 401]
    for status in (401, 413, 429):
        sample = f"deeplab_requests_total method=POST route=/segment status={status}"
        assert (before[sample], found[sample]) == (0, 1)
    assert found["deeplab_requests_total method=GET route=/models/{name} status=401"] == 1
    assert found["deeplab_requests_total method=PUT route=/segment status=401"] == 1
    assert found["deeplab_requests_total method=GET route=none status=401"] == 1
