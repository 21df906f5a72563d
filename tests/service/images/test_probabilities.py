"""Probabilities, the most probable classes and sets over HTTP, from a model with known results."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from service.inference.contract import Calibration
from tests.service import onnx_models
from tests.service.web import opened, photo, png, post, serving

PHOTO = photo()
RED = PHOTO[..., 0].astype(int)
COARSE = RED[::4, :48:4]  # points whose centres are on the photo of 40 x 50 pixels
# Sets of at least 100 / 255 contain the truth in 95 % of the pixels of 99 photos.
MISSED = tuple([0.0] * 50 + [0.04] * 51 + [0.5] * 155)
CALIBRATION = Calibration(
    dataset="tiny", split="val", images=99, best_f1=(0.0, 0.5, 0.8), missed=MISSED
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    full: dict[str, Any] = {"confidence": True, "on_request": True, "probabilities": True}
    onnx_models.save(folder / "full.onnx", calibration=CALIBRATION, **full)
    onnx_models.save(folder / "new.onnx", **full)
    onnx_models.save(folder / "plain.onnx")
    with serving(folder) as client:
        yield client


def arrays(client: TestClient, image: NDArray[np.uint8], **query: Any) -> dict[str, Any]:
    answer = post(client, png(image), output="probabilities", model="full", **query)
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as found:
        return dict(found)


def test_probabilities_lie_where_the_transform_says(client: TestClient) -> None:
    found = arrays(client, PHOTO)
    assert found["classes"].tolist() == list(onnx_models.CLASSES)
    values = found["probabilities"]
    assert (values[1] == COARSE).all()
    assert (values[0] == 255 - COARSE).all()
    x, y = found["transform"] @ (1, 2, 1)
    assert (x, y) == (6.0, 10.0)  # the middle of the block that begins at (4, 8)


def test_the_photo_may_be_larger_than_the_model(client: TestClient) -> None:
    large = np.kron(PHOTO[:40, :40], np.ones((3, 3, 1), np.uint8))
    found = arrays(client, large)
    end = found["transform"] @ (found["probabilities"].shape[2], 0, 1)
    assert 110 < end[0] < 135


def test_photos_of_an_aligned_model_are_padded_less_and_lie_as_exactly(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "full.onnx", aligned=True, probabilities=True)
    with serving(tmp_path) as client:
        for height, width in ((20, 60), (49, 65), (40, 30), (7, 9)):
            image = photo(height, width)
            assert (opened(post(client, png(image)).content) == onnx_models.expected(image)).all()
            found = arrays(client, image)
            assert (found["probabilities"][1] == image[::4, ::4, 0]).all()
            assert found["transform"].tolist() == [[4, 0, 0.5], [0, 4, 0.5]]


@pytest.mark.parametrize("overlap", [0, 0.37])
def test_windows_are_joined_into_one_grid(client: TestClient, overlap: float) -> None:
    """The red channel rises evenly, so that points between those of the windows are known too."""
    height, width = 131, 217
    down, across = np.mgrid[:height, :width]
    image = np.repeat((down // 2 + across // 2)[..., None], 3, axis=2).astype(np.uint8)
    found = arrays(client, image, fit="sliding", overlap=overlap)
    values, transform = found["probabilities"], found["transform"]
    assert values.shape[0] == 3
    assert transform.tolist() == [[4, 0, 2], [0, 4, 2]]
    assert values.shape[1:] == (33, 54)  # all points on the photo: 2, 6, ... 130, and 214
    rows, columns = np.mgrid[: values.shape[1], : values.shape[2]]
    # A point has the value of the first pixel of its block, whose centre is 2 pixels away.
    expected = rows * 2 + columns * 2
    inner = (slice(None, -1), slice(None, -1))  # the last points may lie behind the last block
    assert np.abs(values[1][inner].astype(int) - expected[inner]).max() <= 1
    assert (values[0].astype(int) + values[1] - 255).max() <= 1


def test_a_photo_that_fits_is_the_same_with_windows(client: TestClient) -> None:
    plain, sliding = arrays(client, PHOTO), arrays(client, PHOTO, fit="sliding")
    assert set(plain) == set(sliding)
    assert all((plain[name] == sliding[name]).all() for name in plain)


def test_smooth_labels_of_windows_follow_the_edge_of_the_photo(client: TestClient) -> None:
    """By the probabilities the class changes at x = 110; the photo's edge is 4 pixels further."""
    height, width = 131, 217
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width) + 20  # as likely as not at 128; a block has its first pixel's
    image[:, 114:, 1:] = 255
    masks = [
        opened(post(client, png(image), model="full", fit="sliding", smooth=smooth).content)
        for smooth in (False, True)
    ]
    plain, smooth = ((mask[:, 1:] != mask[:, :-1]).argmax(axis=1) + 1 for mask in masks)
    assert (plain == 65).all()  # the labels of this model change at 85
    assert (np.abs(smooth - 114) <= 1).all()


def test_top_gives_the_most_probable_classes_in_order(client: TestClient) -> None:
    found = arrays(client, PHOTO, top=2)
    assert "probabilities" not in found
    assert (found["top_classes"][0] == (COARSE > 127)).all()
    assert (found["top_probabilities"].sum(axis=0) == 255).all()


def test_sets_hold_all_classes_above_the_calibrated_threshold(client: TestClient) -> None:
    found = arrays(client, PHOTO, coverage=0.95)
    sets = np.unpackbits(found["sets"], axis=0, count=3, bitorder="little")
    assert (sets[1] == (COARSE >= 100)).all()
    assert (sets[0] == (255 - COARSE >= 100)).all()
    assert not sets[2].any()


def test_thresholds_of_the_model_are_taken_where_none_is_given(client: TestClient) -> None:
    labels = onnx_models.expected(PHOTO)
    thresholds = np.array([0, 128, 204])
    query: dict[str, Any] = {"model": "full", "threshold": "best"}
    mask = opened(post(client, png(PHOTO), **query).content)
    assert (mask == np.where(thresholds[labels] <= RED, labels, 0)).all()
    mask = opened(post(client, png(PHOTO), min_confidence="dim:0", **query).content)
    thresholds[1] = 0
    assert (mask == np.where(thresholds[labels] <= RED, labels, 0)).all()


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"model": "plain", "output": "probabilities"}, "export it with --probabilities"),
        ({"model": "full", "top": 2}, "need output=probabilities"),
        ({"model": "new", "output": "probabilities", "coverage": 0.9}, "export.calibrate"),
        ({"model": "new", "threshold": "best"}, "export.calibrate"),
        ({"model": "full", "output": "probabilities", "coverage": 0.995}, "at most 0.990"),
        (
            {"model": "full", "output": "probabilities", "coverage": 1},
            "above 0 and below 1",
        ),
        (
            {"model": "full", "output": "probabilities", "top": 257},
            "from 0 to 256",
        ),
        ({"model": "full", "threshold": "worst"}, "only best is allowed"),
    ],
)
def test_what_the_model_cannot_give_is_refused(
    client: TestClient, query: dict[str, Any], told: str
) -> None:
    answer = post(client, png(PHOTO), **query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert told in answer.json()["detail"]
