"""Refined labels, instances and simplified polygons over HTTP, against scipy and shapely."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import shapely
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage

from postprocess import instances, runs
from postprocess.areas import Area
from postprocess.refine import Refinement
from postprocess.results import outputs
from tests.service import onnx_models
from tests.service.web import opened, png, post, serving

SIZE = onnx_models.SIZE


def blobs(height: int, width: int) -> NDArray[np.uint8]:
    """A photo whose red channel, which the tiny model looks at, has regions of many sizes."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((height, width)), 1.3)
    red = 127 + noise * 260
    return np.repeat(red.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


PHOTO = blobs(*SIZE)
LABELS = onnx_models.expected(PHOTO)
LARGE = blobs(120, 150)  # the model sees it shrunk


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "plain.onnx")
    onnx_models.save(folder / "sure.onnx", confidence=True, on_request=True)
    with serving(folder) as client:
        yield client


def mask_of(client: TestClient, photo: NDArray[np.uint8], **query: Any) -> NDArray[np.uint8]:
    answer = post(client, png(photo), **query)
    assert answer.status_code == 200, answer.text
    return opened(answer.content)


def test_every_output_has_the_refined_labels(client: TestClient) -> None:
    query: dict[str, Any] = {"min_area": "12", "fill_holes": "100%"}
    expected = Refinement(min_area=Area(12), fill_holes=Area(1, True)).apply(LABELS, None, 0)
    assert (expected != LABELS).sum() > 20
    assert (mask_of(client, PHOTO, **query) == expected).all()
    colors = np.array(onnx_models.PALETTE)[expected]
    assert (mask_of(client, PHOTO, output="color", **query) == colors).all()
    body = post(client, png(PHOTO), output="npz", **query).content
    with np.load(io.BytesIO(body)) as arrays:
        assert (arrays["labels"] == expected).all()
    counts = np.bincount(expected.ravel(), minlength=3).tolist()
    for output in ("json", "rle"):
        classes = post(client, png(PHOTO), output=output, **query).json()["classes"]
        assert [entry["pixels"] for entry in classes] == counts
    features = post(client, png(PHOTO), output="polygons", **query).json()["features"]
    areas = [shapely.geometry.shape(each["geometry"]).area for each in features]
    assert areas == counts


def test_an_area_counts_pixels_of_the_photo_and_not_of_the_model(client: TestClient) -> None:
    """The mask of a large photo is enlarged: no region below the area remains in it."""
    before, after = mask_of(client, LARGE), mask_of(client, LARGE, min_area=60)

    def smallest(labels: NDArray[np.uint8]) -> int:
        found = [ndimage.label(labels == label)[0] for label in np.unique(labels)]
        return min(int(np.bincount(each.ravel())[1:].min()) for each in found)

    assert smallest(before) < 60 <= smallest(after)


def test_unsure_pixels_become_background_or_void(client: TestClient) -> None:
    """The tiny model's confidence is the red channel; thresholds are shares of 255."""
    red = PHOTO[..., 0]
    found = mask_of(client, PHOTO, model="sure", min_confidence=0.8)
    assert (found == np.where(red >= 204, LABELS, 0)).all()
    found = mask_of(client, PHOTO, model="sure", min_confidence="bright:0.8,1:0.5")
    assert (
        found
        == np.where(
            (LABELS == 1) & (red < 128), 0, np.where((LABELS == 2) & (red < 204), 0, LABELS)
        )
    ).all()
    void = mask_of(client, PHOTO, model="sure", min_confidence=0.8, below="void")
    assert (void == np.where(red >= 204, LABELS, 255)).all()
    summary = post(
        client, png(PHOTO), model="sure", min_confidence=0.8, below="void", output="json"
    ).json()
    assert sum(each["pixels"] for each in summary["classes"]) == (red >= 204).sum()


@pytest.mark.parametrize("photo", [PHOTO, LARGE])
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own, in decode
def test_instances_are_the_regions_of_the_mask(
    client: TestClient, photo: NDArray[np.uint8]
) -> None:
    labels = mask_of(client, photo)
    query: dict[str, Any] = {"model": "sure", "instances": True}
    found = post(client, png(photo), output="rle", **query).json()["instances"]
    summary = post(client, png(photo), output="json", **query).json()["instances"]
    features = post(client, png(photo), output="polygons", **query).json()["features"]
    body = post(client, png(photo), output="npz", **query).content
    with np.load(io.BytesIO(body)) as arrays:
        numbered = arrays["instances"]
    assert [{**each, "segmentation": None} for each in found] == [
        {**each, "segmentation": None} for each in summary
    ]
    expected = []
    for label in (1, 2):
        regions, _ = ndimage.label(labels == label)
        boxes = ndimage.find_objects(regions)
        for number, (rows, columns) in enumerate(boxes, 1):
            box = [columns.start, rows.start, columns.stop, rows.stop]
            expected.append((label, int((regions == number).sum()), box))
    listed = [(each["class_id"], each["pixels"], each["box"]) for each in found]
    assert sorted(listed) == sorted(expected)
    assert [(each[0], -each[1]) for each in listed] == sorted((a, -b) for a, b, _ in listed)
    for entry, feature in zip(found, features, strict=True):
        where = numbered == entry["id"]
        assert (coco.decode(entry["segmentation"]) == where).all()
        assert (
            coco.encode(np.asfortranarray(where))["counts"].decode()
            == (entry["segmentation"]["counts"])
        )
        assert (labels[where] == entry["class_id"]).all()
        shape = shapely.geometry.shape(feature["geometry"])
        assert feature["properties"]["id"] == feature["id"] == entry["id"]
        assert shape.area == entry["pixels"] == where.sum()
        assert shape.bounds == tuple(entry["box"])
        assert 0 < entry["confidence"] <= 1
    assert (numbered > 0).sum() == sum(each["pixels"] for each in found)


def test_a_photo_of_background_alone_has_no_instances(client: TestClient) -> None:
    empty = png(np.zeros_like(PHOTO))
    for output in ("json", "rle", "polygons"):
        answer = post(client, empty, output=output, instances=True)
        assert answer.status_code == 200, answer.text
        assert not answer.json()["features" if output == "polygons" else "instances"]


@pytest.mark.parametrize("photo", [PHOTO, LARGE], ids=["small", "large"])
def test_regions_of_each_class_are_counted(client: TestClient, photo: NDArray[np.uint8]) -> None:
    mask = opened(post(client, png(photo)).content)
    for output in ("json", "rle"):
        for entry in post(client, png(photo), output=output).json()["classes"]:
            assert entry["regions"] == ndimage.label(mask == entry["id"])[1]


def test_regions_of_noise_are_not_counted(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "MOST_RUNS", 10)
    found = post(client, png(PHOTO), output="json").json()["classes"]
    assert {entry["regions"] for entry in found} == {None}


def test_background_has_instances_where_it_is_named(client: TestClient) -> None:
    query: dict[str, Any] = {"output": "json", "instances": True}
    named = post(client, png(PHOTO), classes="background", **query).json()["instances"]
    assert {each["class_id"] for each in named} == {0}


@pytest.mark.parametrize(("photo", "tolerance"), [(PHOTO, 1.5), (LARGE, 4)])
@pytest.mark.parametrize("split", [False, True])
def test_simplified_polygons_share_their_borders(
    client: TestClient, photo: NDArray[np.uint8], tolerance: float, split: bool
) -> None:
    query: dict[str, Any] = {"output": "polygons", "instances": split, "classes": "0,1,2"}
    exact = post(client, png(photo), **query).json()["features"]
    found = post(client, png(photo), simplify=tolerance, **query).json()["features"]
    parts = [p for each in found for p in shapely.geometry.shape(each["geometry"]).geoms]
    assert shapely.is_valid(parts).all()
    assert shapely.coverage_is_valid(parts)
    assert sum(part.area for part in parts) == photo.shape[0] * photo.shape[1]
    old = [p for each in exact for p in shapely.geometry.shape(each["geometry"]).geoms]
    assert max(a.hausdorff_distance(b) for a, b in zip(parts, old, strict=True)) <= tolerance
    assert len(shapely.get_coordinates(parts)) < len(shapely.get_coordinates(old))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("min_area", "-1", "whole pixels from 1 to 999999999 (64), a share"),
        ("min_area", "1.5", "whole pixels from 1 to 999999999 (64), a share"),
        ("fill_holes", "101%", "at most 100%"),
        ("simplify", "-1", "give a number from 0 to 100"),
        ("simplify", "101", "give a number from 0 to 100"),
        ("simplify", "nan", "give a number from 0 to 100"),
        ("contour", "1.5", "give a whole number from 0 to 32"),
        ("max_side", "0", "give a whole number from 1"),
        ("min_confidence", ":0.5", "person:0.8"),
        ("min_confidence", "1.1", "from 0 to 1"),
        ("min_confidence", "cat:0.5", "0 background, 1 dim, 2 bright"),
        ("min_confidence", "0.5", "export it with --confidence"),
        ("below", "nothing", "choose from background, void"),
        ("instances", "maybe", "instances"),
    ],
)
def test_a_wrong_value_is_refused_with_the_range(
    client: TestClient, name: str, value: str, told: str
) -> None:
    query: dict[str, Any] = {"model": "plain", name: value}
    answer = post(client, png(PHOTO), **query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert name in answer.json()["detail"]
    assert told in answer.json()["detail"]


def test_work_on_regions_is_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "MAX_INSTANCES", 3)
    refused = post(client, png(PHOTO), output="json", instances=True)
    assert (refused.status_code, refused.json()["code"]) == (413, "image-too-large")
    assert "set min_area" in refused.json()["detail"]
    monkeypatch.setattr(runs, "MAX_RUNS", 3)
    refused = post(client, png(PHOTO), min_area=4)
    assert (refused.status_code, refused.json()["code"]) == (413, "image-too-large")
    assert "leave out min_area" in refused.json()["detail"]
