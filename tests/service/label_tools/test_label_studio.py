"""The ML backend answers as Label Studio asks; a hand-written Label Studio has the photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from annotations.draw import draw
from annotations.errors import Notes
from annotations.files import Reading
from annotations.formats import READERS
from annotations.labelstudio import photo_name
from service.client import Client
from service.label_tools.drafts import Drafter, matched
from service.label_tools.label_studio import Backend, PhotoSource, create_app, main
from tests.annotations.test_runs import decode_rle
from tests.model.data.exchange.files import write_json

NUMBERS = {"background": 0, "dim": 1, "bright": 2}
JWT = "head.body.signature"


def interface(tag: str, *labels: str) -> str:
    values = "".join(f'<Label value="{label}"/>' for label in labels)
    return (
        f'<View><Image name="pic" value="$photo"/><{tag} name="shapes" toName="pic">{values}'
        f"</{tag}></View>"
    )


BRUSH = interface("BrushLabels", "Dim", "bright")
POLYGON = interface("PolygonLabels", "dim", "bright")


def tasks(*addresses: str) -> dict[str, Any]:
    found = [{"id": n, "data": {"photo": address}} for n, address in enumerate(addresses)]
    return {"tasks": found, "project": "1.2"}


@pytest.fixture
def asked() -> list[httpx.Request]:
    return []


@pytest.fixture
def photos(content: bytes, asked: list[httpx.Request]) -> PhotoSource:
    """Label Studio at http://studio: an upload, a token to refresh, and a redirect."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.path == "/api/token/refresh":
            return httpx.Response(200, json={"access": "fresh"})
        if request.url.path.endswith("a.png"):
            return httpx.Response(200, content=content)
        if request.url.path.endswith("moved.png"):
            return httpx.Response(302, headers={"Location": "http://169.254.169.254/"})
        return httpx.Response(404)

    transport = httpx.MockTransport(answer)
    return PhotoSource("http://studio", "secret", hosts=("cdn.example",), transport=transport)


def backend(client: Client, photos: PhotoSource, **changes: Any) -> TestClient:
    """The backend with exact polygons of every size."""
    drafter = Drafter(client, tolerance=0.0, min_area=0)
    return TestClient(create_app(Backend(drafter, photos, **changes)))


def drawn(prediction: dict[str, Any], folder: Path) -> NDArray[np.uint8]:
    """What our reader of Label Studio's files makes of a prediction."""
    task = {"id": 1, "data": {"image": "a.png"}, "predictions": [prediction]}
    path = write_json(folder / "tasks.json", [task])
    (photo,) = READERS["labelstudio"](path, Reading(predictions=True), Notes()).photos
    assert photo.size is not None
    return draw(photo.regions, NUMBERS, photo.size, fill=0).ids


@pytest.mark.slow
def test_health_and_events(client: Client, photos: PhotoSource) -> None:
    with backend(client, photos) as web:
        assert web.get("/health").json()["status"] == "UP"
        assert web.get("/").status_code == 200
        assert web.post("/webhook", json={"action": "PROJECT_UPDATED"}).status_code == 201
        assert web.post("/train", json={}).status_code == 201


@pytest.mark.slow
def test_setup_names_the_model(client: Client, photos: PhotoSource) -> None:
    with backend(client, photos) as web:
        answer = web.post("/setup", json={"project": "1.2", "schema": BRUSH, "access_token": "x"})
        assert answer.json()["model_version"].startswith("tiny ")


@pytest.mark.slow
def test_setup_refuses_a_project_without_a_label_in_common(
    client: Client, photos: PhotoSource
) -> None:
    with backend(client, photos) as web:
        answer = web.post("/setup", json={"schema": interface("BrushLabels", "cat", "dog")})
        assert answer.status_code == 400
        assert "no class of tiny (background, dim, bright) is a label" in answer.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "schema", ["<View", "<View/>", interface("RectangleLabels", "dim"), interface("Choices", "dim")]
)
def test_other_interfaces_are_refused(schema: str, client: Client, photos: PhotoSource) -> None:
    with backend(client, photos) as web:
        answer = web.post("/setup", json={"schema": schema})
        assert answer.status_code == 400
        assert "labelling interface" in answer.json()["error"]


@pytest.mark.slow
def test_polygons_are_the_services_mask(
    client: Client, photos: PhotoSource, expected: NDArray[np.uint8], tmp_path: Path
) -> None:
    with backend(client, photos) as web:
        body = {**tasks("/data/upload/1/0123abcd-a.png"), "label_config": POLYGON}
        (prediction,) = web.post("/predict", json=body).json()["results"]
    assert (drawn(prediction, tmp_path) == expected).all()
    assert {each["from_name"] for each in prediction["result"]} == {"shapes"}
    assert {each["to_name"] for each in prediction["result"]} == {"pic"}
    assert 0 < prediction["score"] <= 1
    assert prediction["model_version"].startswith("tiny ")


@pytest.mark.slow
def test_brushes_are_the_services_mask(
    client: Client, photos: PhotoSource, expected: NDArray[np.uint8]
) -> None:
    """Decoded by Label Studio's own code; the label keeps the project's spelling."""
    with backend(client, photos) as web:
        body = {**tasks("/data/upload/1/0123abcd-a.png"), "label_config": BRUSH}
        (prediction,) = web.post("/predict", json=body).json()["results"]
    found = np.zeros_like(expected)
    for each in prediction["result"]:
        shape = (each["original_height"], each["original_width"], 4)
        pixels = decode_rle(each["value"]["rle"]).reshape(shape)[..., 3] > 0
        (label,) = each["value"]["brushlabels"]
        found[pixels] = {"Dim": 1, "bright": 2}[label]
    assert (found == expected).all()


@pytest.mark.slow
def test_classes_can_have_other_names_in_the_project(client: Client, photos: PhotoSource) -> None:
    with backend(client, photos, wanted={"bright": "Sky"}) as web:
        config = interface("PolygonLabels", "sky", "cat")
        body = {**tasks("/data/upload/1/0123abcd-a.png"), "label_config": config}
        (prediction,) = web.post("/predict", json=body).json()["results"]
    assert {each["value"]["polygonlabels"][0] for each in prediction["result"]} == {"sky"}
    assert matched(("a", "b", "c"), {"b": "C"}, ("c", "A")) == {0: "A", 1: "c", 2: "c"}


@pytest.mark.slow
def test_older_tokens_are_sent_and_newer_ones_exchanged(
    client: Client, photos: PhotoSource, asked: list[httpx.Request]
) -> None:
    photos.read("/data/upload/1/a.png")
    assert asked[-1].headers["Authorization"] == "Token secret"
    photos.token = JWT
    photos.read("http://studio/data/upload/1/a.png")
    assert asked[-1].headers["Authorization"] == "Bearer fresh"


def test_the_token_goes_to_label_studio_alone(
    photos: PhotoSource, asked: list[httpx.Request]
) -> None:
    photos.read("https://cdn.example/a.png")
    assert "Authorization" not in asked[-1].headers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://169.254.169.254/latest/a.png", "give --photo-host 169.254.169.254"),
        ("s3://bucket/a.png", "photos of s3: are not read"),
        ("file:///etc/passwd", "photos of file: are not read"),
        ("/data/upload/1/gone.png", "404"),
        ("/data/upload/1/moved.png", "302"),
        ("/data/local-files/?d=../../etc/passwd", "is not below"),
    ],
)
def test_photos_that_may_not_or_cannot_be_read_are_named(
    address: str, told: str, client: Client, photos: PhotoSource, tmp_path: Path
) -> None:
    """The other tasks get their predictions."""
    photos.local_files = tmp_path
    with backend(client, photos) as web:
        body = {**tasks(address, "/data/upload/1/a.png"), "label_config": POLYGON}
        bad, good = web.post("/predict", json=body).json()["results"]
    assert told in bad["error"]
    assert bad["result"] == []
    assert good["result"]


def test_local_files_are_read_from_their_folder(
    photos: PhotoSource, content: bytes, tmp_path: Path, asked: list[httpx.Request]
) -> None:
    (tmp_path / "trip").mkdir()
    (tmp_path / "trip" / "b.png").write_bytes(content)
    photos.local_files = tmp_path
    assert photos.read("/data/local-files/?d=trip/b.png") == content
    assert not asked


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"tasks": 3}', b'{"tasks": []}'])
def test_broken_requests_are_400(body: bytes, client: Client, photos: PhotoSource) -> None:
    with backend(client, photos) as web:
        assert web.post("/predict", content=body).status_code == 400


def test_a_service_that_is_gone_is_503(photos: PhotoSource) -> None:
    from service.client import RetryPolicy

    policy = RetryPolicy(give_up_after_s=0.1)
    with Client("http://127.0.0.1:9", retry=policy) as gone, backend(gone, photos) as web:
        body = {**tasks("/data/upload/1/a.png"), "label_config": POLYGON}
        assert web.post("/predict", json=body).status_code == 503


def test_a_model_that_the_service_lacks_is_a_usage_error(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([url, "--model", "huge"]) == 2
    assert "model huge: the service has tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map", "dim"], "--map dim: give CLASS=LABEL; classes are background, dim, bright"),
        (["--map", "dim=Dark,dusk=Dark"], "--map dusk=Dark: give CLASS=LABEL"),
        (["--tolerance", "-1"], "give pixels from 0 on"),
        (["--tolerance", "inf"], "give pixels from 0 on"),
        (["--min-area", "-1"], "give pixels from 0 on"),
    ],
)
def test_options_without_a_meaning_are_usage_errors(
    options: list[str], message: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([url, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "studio", "message"),
    [
        ("ALL_PROXY=ftp://h", "http://studio.invalid", "ALL_PROXY=ftp://h is no http"),
        ("SSL_CERT_FILE=/nowhere", "https://studio.invalid", "SSL_CERT_FILE=/nowhere: No such"),
        ("A=1", "studio:8080", "URL 'studio:8080': write it as http://HOST:PORT"),
    ],
)
def test_a_wrong_way_to_label_studio_is_a_usage_error_at_the_start(
    variable: str,
    studio: str,
    message: str,
    url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """httpx by itself ends with a traceback on such variables."""
    monkeypatch.setenv(*variable.split("=", 1))
    assert main([url, "--label-studio", studio]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_way_to_the_service_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://h")
    assert main(["http://service.invalid"]) == 2
    assert "ALL_PROXY=ftp://h is no http" in capsys.readouterr().err


def test_networks_in_no_proxy_and_a_dead_proxy(
    photos: PhotoSource, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx fails on `fe80::/10` for every host; an error through a proxy names it."""
    monkeypatch.setenv("NO_PROXY", "::1,fe80::/10")
    assert photos.read("/data/upload/1/a.png") == content
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(httpx.ConnectError, match=r"the proxy http://127\.0\.0\.1:9 \(HTTP_PROXY\)"):
        PhotoSource("http://studio.invalid").read("/data/a.png")


def test_names_of_local_files_are_decoded_once(tmp_path: Path) -> None:
    """`a%20b.png` is a file's own name here; Label Studio encodes it again."""
    (tmp_path / "a%20b.png").write_bytes(b"photo")
    source = PhotoSource(local_files=tmp_path)
    assert source.read("/data/local-files/?d=a%2520b.png") == b"photo"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/data/upload/3/0123abcd-a.jpg", "a.jpg"),
        ("/data/local-files/?d=b/a%26b.jpg", "b/a&b.jpg"),
        ("https://cdn.example/b/a%20b.jpg?token=1", "b/a b.jpg"),
        ("s3://bucket/b/a%20b#1?.jpg", "b/a%20b#1?.jpg"),
        ("C:\\photos\\a.jpg", "\\photos\\a.jpg"),
    ],
)
def test_photos_are_named_by_their_address(address: str, expected: str) -> None:
    assert photo_name(address) == expected
