"""Keys: who is let in, how much, and what stays open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.http.middleware.keys import Bucket
from tests.service import onnx_models
from tests.service.web import photo, png, post, serving

DIGESTS = ",".join(hashlib.sha256(key.encode()).hexdigest() for key in ("first", "second"))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, api_keys=DIGESTS, rate_limit_per_minute=3) as client:
        yield client


def test_a_known_key_is_let_in(client: TestClient) -> None:
    assert post(client, png(photo()), headers=bearer("first")).status_code == 200
    assert post(client, png(photo()), headers=bearer("second")).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, bearer("third"), bearer(""), {"Authorization": "Basic Zmlyc3Q="}]
)
@pytest.mark.parametrize("path", ["/models", "/metrics", "/v2", "/nothing"])
def test_without_a_known_key_nothing_is_told(
    client: TestClient, headers: dict[str, str], path: str
) -> None:
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_probes_need_no_key(client: TestClient) -> None:
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_the_schema_says_where_a_key_is_needed(client: TestClient) -> None:
    paths = client.get("/openapi.json", headers=bearer("first")).json()["paths"]
    assert {"401", "429"} <= paths["/segment"]["post"]["responses"].keys()
    assert paths["/segment"]["post"]["security"] == [{"key": []}]
    assert "401" not in paths["/livez"]["get"]["responses"]


def test_a_quota_is_each_keys_own(client: TestClient) -> None:
    answers = [client.get("/models", headers=bearer("first")) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[3].json()["code"] == "rate-limited"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert client.get("/models", headers=bearer("second")).status_code == 200


def test_a_bucket_refills_evenly() -> None:
    now = [0.0]
    bucket = Bucket(6, lambda: now[0])
    assert [bucket.take() for _ in range(6)] == [0] * 6
    assert bucket.take() == pytest.approx(10)
    now[0] = 9.5
    assert bucket.take() == pytest.approx(0.5)
    now[0] = 10
    assert bucket.take() == 0
    now[0] = 10_000
    assert [bucket.take() > 0 for _ in range(7)] == [False] * 6 + [True]
