"""/docs works without any other network access, and under a strict Content-Security-Policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect, sync_playwright

from tests.service import onnx_models
from tests.service.http.test_playground import CHROMIUM, FLAGS, needs_chromium
from tests.service.processes import running
from tests.service.web import photo, png, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    with running(folder) as (url, _):
        yield url


@needs_chromium
def test_the_page_works_with_the_network_blocked(address: str, tmp_path: Path) -> None:
    elsewhere: list[str] = []
    errors: list[str] = []

    def only_here(route: Route) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    (tmp_path / "photo.png").write_bytes(png(photo()))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page()
        page.route("**/*", only_here)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(f"{address}/docs")
        block = page.locator("#operations-default-post_segment")
        block.locator(".opblock-summary-control").click()
        block.get_by_role("button", name="Try it out").click()
        block.locator("input[type=file]").set_input_files(tmp_path / "photo.png")
        block.get_by_role("button", name="Execute").click()
        expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text(
            "200"
        )
        browser.close()
    assert not elsewhere
    assert not errors


def test_the_page_refers_to_no_other_host_and_has_a_strict_policy(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path) as client:
        answer = client.get("/docs")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"https?://", answer.text)
        for name, kind in re.findall(r'(?:src|href)="(docs/[\w.-]+\.(js|css))"', answer.text):
            asset = client.get(f"/{name}")
            assert asset.status_code == 200
            assert kind in asset.headers["content-type"].replace("javascript", "js")
        assert client.get("/docs/redoc.standalone.js").status_code == 404
        assert client.get("/docs/..%2fcore.py").status_code == 404


def test_the_page_and_its_files_need_no_key(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, api_keys=("0" * 64,)) as client:
        for path in ("/docs", "/docs/swagger-ui.css", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/models").status_code == 401
