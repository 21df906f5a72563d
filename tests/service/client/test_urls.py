"""Photos by URL, which the real service fetches: names, second runs and faults."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client
from service.client.cli import main
from service.client.urls import name_of
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import opened, photo, png

from .flaky_server import Answer, FlakyServer, Request, problem
from .flaky_server import running as hosting

pytestmark = pytest.mark.slow

PHOTO = photo(30, 40)


def _hosted(request: Request, _nth: int) -> Answer:
    if request.path == "/gone.png":
        return Answer(404, b"no")
    seed = int(request.query.get("id", "0"))
    return Answer(200, png(photo(30, 40, seed=seed)), "image/png")


@pytest.fixture(scope="module")
def host() -> Iterator[FlakyServer]:
    with hosting(_hosted) as server:
        yield server


@pytest.fixture(scope="module")
def url(host: FlakyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("models")
    onnx_models.save(models / "tiny.onnx")
    with running(models, "--allow-url-hosts", host.url.removeprefix("http://")) as (url, _):
        yield url


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://example.org/a/b.jpg", "example.org/a/b.jpg"),
        ("HTTPS://Example.ORG:8080//a//b.jpg", "example.org_8080/a/b.jpg"),
        ("https://example.org/My%20Stra%C3%9Fe.jpg", "example.org/My Straße.jpg"),
        ("https://example.org", "example.org/index"),
        ("https://example.org/a/../b.jpg#part", "example.org/b.jpg"),
        ("https://example.org/%2e%2e/%2Fetc%5Cx%00.jpg", "example.org/_/_etc_x_.jpg"),
        ("http://[::1]:81/a:b?.jpg", "__1_81/a_b~"),
    ],
)
def test_the_name_of_a_url_is_its_path_and_stays_inside(text: str, name: str) -> None:
    assert name_of(text).startswith(name)
    assert ".." not in Path(name_of(text)).parts


def test_a_query_makes_another_name_without_being_in_it() -> None:
    """It may be long and secret, as that of a signed URL."""
    first, second = (name_of(f"https://example.org/p.jpg?key={key}") for key in ("a", "b" * 999))
    assert first != second
    assert all(len(name) == len("example.org/p~12345678.jpg") for name in (first, second))


def test_urls_are_segmented_and_a_second_run_asks_for_none(
    url: str, host: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.png").write_bytes(png(photo(30, 40, seed=5)))
    (tmp_path / "list.txt").write_text(f"# list\n{host.url}/b/c.png\n\n{host.url}/p?id=3\n")
    run = [url, f"{host.url}/a.png", str(tmp_path / "mine.png"), "--urls"]
    run += [str(tmp_path / "list.txt"), "-o", str(tmp_path / "out"), "--output", "mask", "--json"]
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == 4
    place = host.url.removeprefix("http://").replace(":", "_")
    mask = opened((tmp_path / "out" / place / "a.mask.png").read_bytes())
    assert (mask == onnx_models.expected(PHOTO)).all()
    assert (tmp_path / "out" / place / "b" / "c.mask.png").exists()
    assert (tmp_path / "out" / "mine.mask.png").exists()
    (queried,) = (tmp_path / "out" / place).glob("p~*.mask.png")
    assert (opened(queried.read_bytes()) == onnx_models.expected(photo(30, 40, seed=3))).all()
    before = len(host.requests)
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 4
    assert len(host.requests) == before


def test_a_url_that_fails_fails_alone_and_is_tried_again(
    url: str, host: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if it is the first, or its host is not allowed: it may work later."""
    run = [url, f"{host.url}/gone.png", "https://example.org/a.png", f"{host.url}/a.png"]
    run += ["http://", "-o", str(tmp_path / "out"), "--output", "mask", "--json"]
    for _ in range(2):
        assert main(run) == 1
        told = json.loads(capsys.readouterr().out)
        reasons = " ".join(each["reason"] for each in told["failures"])
        assert (told["failed"], told["rejected"]) == (3, 0)
        assert "its server answered 404" in reasons
        assert "https://example.org is not in the service's --allow-url-hosts" in reasons
        assert "http:// is no URL: it has no host" in reasons
        assert told["sent"] + told["skipped"] == 1


def test_a_service_that_fetches_nothing_ends_the_run_as_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    out = str(tmp_path / "out")
    with running(tmp_path) as (url, _):
        assert main([url, "https://example.org/a.png", "-o", out]) == 2
    assert "start the service with --allow-url-hosts" in capsys.readouterr().err
    assert main(["--local", "https://example.org/a.png", "-o", out, "--models", str(tmp_path)]) == 2
    assert "DEEPLAB_ALLOW_URL_HOSTS" in capsys.readouterr().err


def test_lists_on_stdin_may_name_urls_and_files(
    url: str, host: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.png").write_bytes(png(PHOTO))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"mine.png\n{host.url}/a.png\n"))
    assert main([url, "-", "-o", "out", "--output", "mask"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{host.url}/b.png\n"))
    assert main([url, "--urls", "-", "-o", "out", "--output", "mask"]) == 0
    assert len(list((tmp_path / "out").rglob("*.mask.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--urls", "no-such-list"], "no such file"),
        (["https://example.org/clip.mp4"], "is a video: download it"),
    ],
)
def test_wrong_urls_exit_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["http://127.0.0.1:9", *arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_the_python_function_takes_the_same_options(url: str, host: FlakyServer) -> None:
    with Client(url) as client:
        options = {"mask_format": "gray"}
        answer = client.segment_url(f"{host.url}/a.png", output="mask", options=options)
    assert (opened(answer.files()["mask.png"]) == onnx_models.expected(PHOTO)).all()


def test_max_side_names_the_urls_that_stay_large(
    url: str, host: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [url, f"{host.url}/a.png", "--max-side", "10", "-o", str(tmp_path / "out")]
    assert main(run) == 0
    assert "sent unshrunk: the service fetches it" in capsys.readouterr().err


def test_a_refused_option_is_wrong_usage_with_urls_too(
    host: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hosting(
        lambda request, nth: (
            problem(400, "invalid-request", "alpha: too large")
            if request.path == "/segment"
            else None
        )
    ) as server:
        run = [server.url, f"{host.url}/a.png", "--alpha", "7", "-o", str(tmp_path / "out")]
        assert main(run) == 2
    assert "correct --alpha" in capsys.readouterr().err
