"""Every output over HTTP, compared with the known labels of the tiny model."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
import shapely
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco

from pixels.exif import ORIENTATION
from postprocess import outlines
from postprocess.results.outputs import Wish, extras
from postprocess.results.selection import select
from tests.service import onnx_models
from tests.service.web import opened, photo, png, post, serving

PHOTO = photo()
LABELS = onnx_models.expected(PHOTO)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "plain.onnx")
    onnx_models.save(folder / "sure.onnx", confidence=True, on_request=True)
    with serving(folder) as client:
        yield client


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("", "image/png"),
        ("application/json", "application/json"),
        ("application/geo+json", "application/geo+json"),
        ("image/jpeg, image/png;q=0.5", "image/jpeg"),
        ("text/html, */*;q=0.1, image/png;q=0", "image/jpeg"),
        ("application/octet-stream", "application/octet-stream"),
    ],
)
def test_accept_chooses_if_no_output_is_named(
    client: TestClient, accept: str, media_type: str
) -> None:
    answer = post(client, png(PHOTO), headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type


def test_accept_may_come_in_several_lines(client: TestClient) -> None:
    lines = [("Accept", "text/html"), ("Accept", "application/json"), ("Content-Type", "image/png")]
    answer = client.post("/segment", content=png(PHOTO), headers=lines)
    assert answer.headers["content-type"] == "application/json"


def test_what_cannot_be_made_is_not_acceptable(client: TestClient) -> None:
    answer = post(client, png(PHOTO), headers={"Accept": "text/html"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not-acceptable")
    named = post(client, png(PHOTO), headers={"Accept": "text/html"}, output="json")
    assert named.status_code == 200


@pytest.mark.parametrize("choice", ["bright", "2", " BRIGHT ,2"])
def test_a_class_filter_leaves_only_these_classes(client: TestClient, choice: str) -> None:
    wanted = np.where(LABELS == 2, 2, 0)
    mask = post(client, png(PHOTO), classes=choice)
    assert (opened(mask.content) == wanted).all()
    color = post(client, png(PHOTO), classes=choice, output="color")
    assert (opened(color.content) == np.array(onnx_models.PALETTE)[wanted]).all()
    found = post(client, png(PHOTO), classes=choice, output="json").json()["classes"]
    assert [(entry["name"], entry["pixels"]) for entry in found] == [
        ("bright", int((LABELS == 2).sum()))
    ]
    overlay = post(client, png(PHOTO), classes=choice, output="overlay", overlay_format="png")
    assert (opened(overlay.content) == PHOTO).all(axis=2)[LABELS != 2].all()


@pytest.mark.parametrize("choice", ["cat", "3", "", "-1", "dim,cat"])
def test_a_class_that_is_not_there_is_named_with_those_that_are(
    client: TestClient, choice: str
) -> None:
    answer = post(client, png(PHOTO), classes=choice)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert "0 background, 1 dim, 2 bright" in answer.json()["detail"]


def test_polygons_cover_exactly_the_pixels_of_their_class(client: TestClient) -> None:
    answer = post(client, png(PHOTO), output="polygons").json()
    assert answer["type"] == "FeatureCollection"
    for feature in answer["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        y, x = np.nonzero(feature["id"] == LABELS)
        pixels = shapely.union_all(shapely.box(x, y, x + 1, y + 1))
        assert shape.is_valid
        assert shape.area == feature["properties"]["pixels"] == len(x)
        assert shape.symmetric_difference(pixels).area == 0
        assert tuple(feature["bbox"]) == shape.bounds


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own, in decode
def test_run_lengths_are_what_coco_reads(client: TestClient) -> None:
    answer = post(client, png(PHOTO), output="rle").json()
    for entry in answer["classes"]:
        decoded = coco.decode(entry["segmentation"])
        assert (decoded == (entry["id"] == LABELS)).all()
        assert coco.area(entry["segmentation"]) == entry["pixels"]


def test_an_overlay_is_a_png_on_request(client: TestClient) -> None:
    by_query = post(client, png(PHOTO), output="overlay", overlay_format="png", alpha=1)
    by_accept = post(client, png(PHOTO), output="overlay", alpha=1, headers={"Accept": "image/png"})
    assert by_query.content == by_accept.content
    picture = opened(by_query.content)
    painted = np.array(onnx_models.PALETTE)[LABELS]
    assert (picture == np.where((LABELS == 0)[..., None], PHOTO, painted)).all()


def test_an_overlay_too_long_for_a_jpeg_is_refused_and_comes_as_a_png(client: TestClient) -> None:
    long = png(np.zeros((1, 65_501, 3), np.uint8))
    refused = post(client, long, output="overlay")
    assert (refused.status_code, refused.json()["code"]) == (413, "image-too-large")
    assert "overlay_format=png" in refused.json()["detail"]
    answer = post(client, long, output="overlay", overlay_format="png")
    assert opened(answer.content).shape == (1, 65_501, 3)


@pytest.mark.parametrize("output", ["json", "rle", "polygons"])
def test_coordinates_come_with_how_the_photo_was_turned(client: TestClient, output: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body = io.BytesIO()
    Image.fromarray(PHOTO).save(body, "PNG", exif=exif)
    turned = post(client, body.getvalue(), output=output).json()
    assert (turned["width"], turned["height"], turned["orientation"]) == (40, 50, 6)
    assert post(client, png(PHOTO), output=output).json()["orientation"] == 1


@pytest.mark.parametrize("width", [1, 3])
def test_a_contour_follows_the_inner_edge_of_each_region(client: TestClient, width: int) -> None:
    body = post(
        client, png(PHOTO), output="overlay", overlay_format="png", alpha=0, contour=width
    ).content
    drawn = (opened(body) == np.array(onnx_models.PALETTE)[LABELS]).all(axis=2) & (LABELS > 0)
    padded = np.pad(LABELS, width, mode="edge").astype(int)
    differs = np.zeros(LABELS.shape, np.bool_)
    reach = range(-width, width + 1)
    for dy in reach:
        for dx in reach:
            # 4-neighbours of the pixels within width - 1 of this one
            if max(abs(dy), abs(dx)) < width or (abs(dy), abs(dx)).count(width) == 1:
                rows = slice(width + dy, width + dy + LABELS.shape[0])
                columns = slice(width + dx, width + dx + LABELS.shape[1])
                differs |= padded[rows, columns] != LABELS
    assert (drawn == (differs & (LABELS > 0))).all()
    assert (opened(body) == PHOTO).all(axis=2)[~drawn].all()


def test_confidence_comes_at_the_photos_size(client: TestClient) -> None:
    answer = post(client, png(PHOTO), model="sure", output="confidence")
    assert (opened(answer.content) == PHOTO[..., 0]).all()
    large = photo(96, 128)
    assert opened(post(client, png(large), model="sure", output="confidence").content).shape == (
        96,
        128,
    )


def test_json_and_npz_hold_the_confidence_too(client: TestClient) -> None:
    summary = post(client, png(PHOTO), model="sure", output="json", include="confidence").json()
    for entry in summary["classes"]:
        mean = PHOTO[..., 0][entry["id"] == LABELS].mean() / 255
        assert entry["confidence"] == pytest.approx(mean, abs=1e-4)
    image = opened(base64.b64decode(summary["confidence"]["base64"]))
    assert (image == PHOTO[..., 0]).all()
    body = post(client, png(PHOTO), model="sure", output="npz").content
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        assert (arrays["confidence"] == PHOTO[..., 0]).all()


@pytest.mark.parametrize(
    ("outputs", "has_it", "asked"),
    [("mask", True, False), ("json", True, True), ("json", False, False), ("npz", True, True)],
)
def test_confidence_is_computed_only_if_requested_and_available(
    outputs: str, has_it: bool, asked: bool
) -> None:
    """Requests that do not need the confidence share batches, whatever their outputs."""
    contract = onnx_models.contract(confidence=has_it)
    wish = Wish((outputs,), select(None, contract))
    assert extras(wish, contract) == ("confidence" if asked else "labels")


def test_a_model_without_confidence_says_so_before_the_photo_is_read(client: TestClient) -> None:
    answer = post(client, b"not a photo", output="confidence")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert "--confidence" in answer.json()["detail"]


def test_corners_of_all_classes_together_are_limited(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for the sum of the classes: one corner less than the sum is a 413."""
    features = post(client, png(PHOTO), output="polygons").json()["features"]
    corners = [outlines.count_corners(each["geometry"]["coordinates"]) for each in features]
    assert len(corners) > 1
    monkeypatch.setattr(outlines, "MAX_CORNERS", sum(corners))
    assert post(client, png(PHOTO), output="polygons").status_code == 200
    monkeypatch.setattr(outlines, "MAX_CORNERS", sum(corners) - 1)
    refused = post(client, png(PHOTO), output="polygons")
    assert (refused.status_code, refused.json()["code"]) == (413, "image-too-large")
    assert "output=rle" in refused.json()["detail"]
