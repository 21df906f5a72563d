"""API keys: required, limited in rate, and not needed for open paths."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.http.app import create_app
from service.http.middleware.keys import Bucket
from service.inference import models
from service.launch import free_port
from service.settings import Settings
from tests.service import onnx_models
from tests.service.processes import LOG, running
from tests.service.web import photo, png, post, serving

DIGESTS = ",".join(hashlib.sha256(key.encode()).hexdigest() for key in ("first", "second"))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, api_keys=DIGESTS, rate_limit_per_minute=3) as client:
        yield client


@pytest.fixture(scope="module")
def unasked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for all tests that use up no quota."""
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    with serving(folder, api_keys=DIGESTS, rate_limit_per_minute=3) as client:
        yield client


def test_a_known_key_is_let_in(client: TestClient) -> None:
    assert post(client, png(photo()), headers=bearer("first")).status_code == 200
    assert post(client, png(photo()), headers=bearer("second")).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, bearer("third"), bearer(""), {"Authorization": "Basic Zmlyc3Q="}]
)
@pytest.mark.parametrize("path", ["/models", "/metrics", "/v2", "/nothing"])
def test_without_a_known_key_nothing_is_revealed(
    unasked: TestClient, headers: dict[str, str], path: str
) -> None:
    answer = unasked.get(path, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_probes_need_no_key(unasked: TestClient) -> None:
    assert unasked.get("/livez").status_code == unasked.get("/readyz").status_code == 200


def test_the_schema_says_where_a_key_is_needed(unasked: TestClient) -> None:
    paths = unasked.get("/openapi.json", headers=bearer("first")).json()["paths"]
    assert {"401", "429"} <= paths["/segment"]["post"]["responses"].keys()
    assert paths["/segment"]["post"]["security"] == [{"key": []}]
    assert "401" not in paths["/livez"]["get"]["responses"]


def test_a_quota_is_each_keys_own(client: TestClient) -> None:
    answers = [post(client, png(photo()), headers=bearer("first")) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[3].json()["code"] == "rate-limited"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert post(client, png(photo()), headers=bearer("second")).status_code == 200


def test_listing_models_uses_no_quota(client: TestClient) -> None:
    """Every run of the batch client lists the models first."""
    for path in ("/models", "/metrics", "/v2") * 3:
        assert client.get(path, headers=bearer("first")).status_code == 200
    assert post(client, png(photo()), headers=bearer("first")).status_code == 200


@pytest.mark.parametrize("setting", ["api_keys", "admin_keys"])
@pytest.mark.parametrize("value", ["", " , ", ",", "\n"])
def test_keys_that_are_set_but_empty_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    """A secret that was not mounted must not leave the service open to everyone."""
    monkeypatch.setenv(f"DEEPLAB_{setting.upper()}", value)
    with pytest.raises(ValidationError, match="set, but empty"):
        Settings(models=tmp_path)


@pytest.mark.slow
def test_a_service_whose_keys_are_missing_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_API_KEYS", " , ")
    command = [sys.executable, "-m", "service", "--port", "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--api-keys" in done.stderr
    assert "set, but empty" in done.stderr


ADMIN = hashlib.sha256(b"admin").hexdigest()
RELOAD = "/models/tiny/reload"


def test_a_reload_needs_an_admin_key_where_there_are_some(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, api_keys=DIGESTS, admin_keys=ADMIN, rate_limit_per_minute=1) as client:
        assert client.post(RELOAD).status_code == 401
        refused = client.post(RELOAD, headers=bearer("first"))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        for _ in range(3):  # and the rate limit does not apply
            assert client.post(RELOAD, headers=bearer("admin")).status_code == 200
        assert post(client, png(photo()), headers=bearer("admin")).status_code == 200


def test_admin_keys_alone_leave_photos_open(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, admin_keys=ADMIN) as client:
        assert post(client, png(photo())).status_code == 200
        assert client.post(RELOAD).status_code == 401
        assert client.post(RELOAD, headers=bearer("admin")).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("10.0.0.7", {}, 403),
        ("testclient", {}, 403),
        ("127.0.0.1", {"Origin": "https://evil.example"}, 403),
        ("127.0.0.1", {"Origin": "null"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, 403),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}, 403),
    ],
)
def test_without_admin_keys_only_a_program_on_the_host_itself_may_reload(
    tmp_path: Path, address: str, headers: dict[str, str], status: int
) -> None:
    """Requests of a web page in a browser, and those that a proxy forwards, are refused."""
    onnx_models.save(tmp_path / "tiny.onnx")
    settings = Settings(models=tmp_path, device="cpu", threads=1)
    app = create_app(settings, models.load(settings))
    with TestClient(app, client=(address, 50000)) as client:
        assert client.post(RELOAD, headers=headers).status_code == status


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [(), ("--trusted-proxies", "127.0.0.1")])
def test_forwarded_addresses_are_trusted_only_from_named_proxies(
    tmp_path: Path, trusted: tuple[str, ...]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path, "--log-format", "json", *trusted) as (url, process):
        httpx.get(f"{url}/models", headers={"X-Forwarded-For": "203.0.113.9"})
        process.terminate()
        process.wait(20)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    (client,) = [line["client"] for line in lines if line.get("path") == "/models"]
    assert client == ("203.0.113.9" if trusted else "127.0.0.1")


def test_a_path_with_an_extra_slash_is_not_redirected(unasked: TestClient) -> None:
    """A redirect would lead to whatever the Host header names."""
    headers = bearer("first") | {"Host": "evil.example"}
    answer = unasked.get("/models/", headers=headers, follow_redirects=False)
    assert answer.status_code == 404


@pytest.mark.slow
def test_the_metrics_port_serves_prometheus_without_a_key_and_nothing_else(
    tmp_path: Path,
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    port = free_port()
    flags = ["--api-keys", DIGESTS, "--metrics-port", str(port)]
    with running(tmp_path, *flags) as (url, _):
        assert httpx.get(f"{url}/metrics").status_code == 401
        open_ = f"http://127.0.0.1:{port}"
        assert "deeplab_ready 1.0" in httpx.get(f"{open_}/metrics").text
        assert httpx.get(f"{open_}/readyz").status_code == 200
        for path in ("/models", "/", "/docs", "/openapi.json", "/v2", "/metrics/", "//metrics"):
            assert httpx.get(f"{open_}{path}").status_code == 404, path
        assert httpx.post(f"{open_}/segment", content=png(photo())).status_code == 404
        assert httpx.get(f"{url}/models", headers={"Host": f"x:{port}"}).status_code == 401


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
