"""Pictures of the subject over HTTP: what is shown, what is hidden, and where the edge lies."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from postprocess.results import encoders
from tests.service import onnx_models
from tests.service.web import opened, png, post, serving


def scene() -> NDArray[np.uint8]:
    """A bright square and a dim bar on a dark ground with a pattern."""
    photo = np.full((48, 64, 3), 20, np.uint8)
    photo[::2, ::2, 1] = 90  # what a blur takes away
    photo[8:24, 10:30, 0] = 220
    photo[34:42, 40:60, 0] = 120
    photo[::2, 1::2, 2] = 90
    return photo


PHOTO = scene()
LABELS = onnx_models.expected(PHOTO)
AWAY = 4  # pixels from a border: nothing is soft there


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "plain.onnx")
    onnx_models.save(folder / "full.onnx", probabilities=True, on_request=True)
    streets = onnx_models.contract(classes=("road", "car", "tree")).model_dump_json()
    onnx_models.save(folder / "streets.onnx", metadata={"deeplab.contract": streets})
    with serving(folder) as client:
        yield client


def picture(client: TestClient, **query: Any) -> NDArray[np.uint8]:
    answer = post(client, png(PHOTO), overlay_format="png", **query)
    assert answer.status_code == 200, answer.text
    return opened(answer.content)


def inner(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region that are not near its border."""
    padded = np.pad(where, AWAY, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * AWAY + 1, 2 * AWAY + 1))
    return np.asarray(windows.all(axis=(2, 3)))


@pytest.mark.parametrize("model", ["plain", "full"])
def test_a_cutout_is_the_subject_alone(client: TestClient, model: str) -> None:
    body = post(client, png(PHOTO), output="cutout", classes="bright", model=model).content
    with Image.open(io.BytesIO(body)) as image:
        assert image.mode == "RGBA"
        cut = np.asarray(image)
    if model == "plain":  # the edge is hard, so its size is known
        assert cut.shape == (16, 20, 4)
        assert (cut == np.dstack([PHOTO[8:24, 10:30], np.full((16, 20), 255)])).all()
    else:  # the model gives `bright` no probability, so that nothing is left near the border
        assert cut.shape == (10, 14, 4)


def test_a_cutout_is_of_all_but_the_background_by_default(client: TestClient) -> None:
    cut = picture(client, output="cutout", model="plain")
    assert cut.shape == (42 - 8, 60 - 10, 4)
    assert ((cut[..., 3] == 255) == (LABELS[8:42, 10:60] > 0)).all()


@pytest.mark.parametrize("kind", ["png", "webp", "avif"])
def test_a_cutout_without_its_transparency_does_not_show_the_background(
    client: TestClient, kind: str
) -> None:
    body = png(PHOTO)
    answer = post(
        client, body, output="cutout", classes="dim,bright", model="plain", overlay_format=kind
    )
    cut = opened(answer.content)
    away = inner(LABELS[8:42, 10:60] == 0)
    hidden = cut[..., :3][away].astype(float)
    pattern = PHOTO[8:42, 10:60][away] - PHOTO[8:42, 10:60][away].mean(axis=0)
    left = (hidden * pattern).sum() / (pattern**2).sum()  # 1 where the whole pattern is left
    assert abs(left) < 0.05
    if kind != "webp":  # WebP's encoder chooses invisible colours itself
        assert (hidden >= 240).all()


def test_an_empty_cutout_has_the_size_of_the_photo(client: TestClient) -> None:
    dark = post(client, png(np.zeros_like(PHOTO)), output="cutout", model="plain").content
    assert opened(dark).shape == (*PHOTO.shape[:2], 4)
    assert not opened(dark)[..., 3].any()
    assert (opened(dark)[..., :3] == 255).all()


def test_the_edge_is_soft_where_the_model_gives_probabilities(client: TestClient) -> None:
    filled = picture(client, output="replace", classes="dim", fill="00ff00", model="full")
    green = np.array([0, 255, 0])
    assert (filled[LABELS == 1] == green).all()  # chosen pixels are hidden completely
    assert (filled[inner(LABELS != 1)] == PHOTO[inner(LABELS != 1)]).all()
    between = (filled != green).any(axis=2) & (filled != PHOTO).any(axis=2)
    assert between.any()


@pytest.mark.parametrize(("query", "hidden"), [({}, LABELS == 0), ({"classes": "1,2"}, LABELS > 0)])
def test_what_is_chosen_is_hidden_and_the_rest_stays(
    client: TestClient, query: dict[str, Any], hidden: NDArray[np.bool_]
) -> None:
    filled = picture(client, output="replace", model="plain", **query)
    assert (filled == np.where(hidden[..., None], 255, PHOTO)).all()
    blurred = picture(client, output="blur", model="plain", **query)
    assert (blurred[~hidden] == PHOTO[~hidden]).all()
    contrast = [each[..., 1][inner(hidden)].astype(float).std() for each in (PHOTO, blurred)]
    assert contrast[1] < contrast[0] / 2


def test_side_by_side_has_the_photo_and_its_overlay(client: TestClient) -> None:
    both = picture(client, output="side-by-side", alpha=0.7, model="plain")
    assert (both[:, :64] == PHOTO).all()
    assert (both[:, 64:] == picture(client, output="overlay", alpha=0.7, model="plain")).all()


@pytest.mark.parametrize("output", ["cutout", "blur", "replace"])
def test_a_model_without_background_needs_classes(client: TestClient, output: str) -> None:
    refused = post(client, png(PHOTO), output=output, model="streets")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid-request")
    assert "choose classes" in refused.json()["detail"]
    chosen = post(client, png(PHOTO), output=output, model="streets", classes="car")
    assert chosen.status_code == 200


def test_a_wrong_colour_is_refused(client: TestClient) -> None:
    refused = post(client, png(PHOTO), output="replace", fill="red")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid-request")
    assert refused.json()["detail"] == (
        "fill='red': give a colour as RRGGBB, six hexadecimal digits"
    )


def test_the_default_is_jpeg_and_several_come_together(client: TestClient) -> None:
    answer = post(client, png(PHOTO), output="blur", model="plain")
    assert answer.headers["content-type"] == "image/jpeg"
    together = post(client, png(PHOTO), output="blur,cutout,side-by-side", model="plain")
    assert together.headers["content-type"] == "application/zip"


def test_a_heatmap_is_the_lighter_the_more_probable_the_class_is(client: TestClient) -> None:
    """The photo is grey below it, so compare a dark photo's colours with the probabilities."""
    answer = post(client, png(PHOTO), output="probabilities", model="full").content
    with np.load(io.BytesIO(answer)) as found:
        chance, transform = found["probabilities"][1], found["transform"]
    heat = picture(client, output="heatmap", classes="dim", model="full").astype(int)
    assert heat.shape == PHOTO.shape
    rows, columns = np.indices(chance.shape)
    x, y = transform[:, :2] @ np.stack([columns.ravel(), rows.ravel()]) + transform[:, 2:]
    light = heat.sum(axis=2)[y.astype(int), x.astype(int)]
    assert np.ptp(chance) > 100
    assert np.corrcoef(light, chance.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("classes", [None, "dim,bright"])
def test_a_heatmap_is_of_one_class(client: TestClient, classes: str | None) -> None:
    query: dict[str, Any] = {} if classes is None else {"classes": classes}
    refused = post(client, png(PHOTO), output="heatmap", model="full", **query)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid-request")
    assert "classes=person" in refused.json()["detail"]
    lacking = post(client, png(PHOTO), output="heatmap", model="plain", classes="dim")
    assert "--probabilities" in lacking.json()["detail"]


@pytest.mark.parametrize("kind", ["webp", "avif"])
def test_a_cutout_in_other_formats_keeps_its_transparency(client: TestClient, kind: str) -> None:
    query: dict[str, Any] = {"output": "cutout", "classes": "dim,bright", "model": "full"}
    plain = opened(post(client, png(PHOTO), **query).content)
    answer = post(client, png(PHOTO), overlay_format=kind, **query)
    assert answer.headers["content-type"] == f"image/{kind}"
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.mode) == (kind.upper(), "RGBA")
    found = np.asarray(picture)
    assert (found[..., 3] == plain[..., 3]).all()
    assert {0, 255} < {*np.unique(found[..., 3]).tolist()}  # a soft edge
    shown = found[..., 3] == 255
    assert np.abs(found[shown].astype(int) - plain[shown]).mean() < 25  # as below


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("output", ["overlay", "blur", "replace", "side-by-side", "heatmap"])
def test_pictures_come_in_every_format(client: TestClient, output: str, kind: str) -> None:
    query: dict[str, Any] = {"output": output, "classes": "bright", "model": "full"}
    answer = post(client, png(PHOTO), overlay_format=kind, **query)
    assert answer.headers["content-type"] == f"image/{kind}"
    found = Image.open(io.BytesIO(answer.content))
    assert found.format == kind.upper()
    exact = picture(client, **query)
    assert found.size == exact.shape[1::-1]
    # Colours of this pattern have a quarter of the pixels in all but PNG.
    assert np.abs(np.asarray(found.convert("RGB")).astype(int) - exact).mean() < 25
    packed = post(client, png(PHOTO), overlay_format=kind, **query | {"output": f"{output},json"})
    suffix = "jpg" if kind == "jpeg" else kind
    assert f"{output}.{suffix}" in zipfile.ZipFile(io.BytesIO(packed.content)).namelist()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/webp", "webp"),
        ("image/avif, image/png;q=0.9", "avif"),
        ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "jpeg"),  # a browser's
        ("image/png, image/webp;q=0.9, image/jpeg;q=0.5", "png"),
    ],
)
def test_accept_chooses_the_format(client: TestClient, accept: str, kind: str) -> None:
    answer = post(client, png(PHOTO), output="overlay", headers={"Accept": accept})
    assert answer.headers["content-type"] == f"image/{kind}"


@pytest.mark.parametrize(("kind", "limit"), [("jpeg", 65_500), ("webp", 16_383), ("avif", 32_768)])
def test_pictures_beyond_a_formats_size_are_refused(
    client: TestClient, kind: str, limit: int
) -> None:
    wide = png(np.zeros((2, limit + 1, 3), np.uint8))
    query: dict[str, Any] = {"output": "overlay", "overlay_format": kind}
    refused = post(client, wide, **query)
    assert (refused.status_code, refused.json()["code"]) == (413, "image-too-large")
    assert str(limit) in refused.json()["detail"]
    assert post(client, wide, **query, max_side=limit).status_code == 200


def test_the_schema_names_every_type_of_picture(client: TestClient) -> None:
    answers = client.get("/openapi.json").json()["paths"]["/segment"]["post"]["responses"]
    assert {kind for kind, _ in encoders.FORMATS.values()} < {*answers["200"]["content"]}


def test_a_format_without_its_encoder_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "writable", lambda: ("jpeg", "png"))
    refused = post(client, png(PHOTO), output="overlay", overlay_format="avif")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid-request")
    assert "choose from jpeg, png" in refused.json()["detail"]


def test_a_legend_is_drawn_into_the_overlay_alone(client: TestClient) -> None:
    large = np.kron(PHOTO, np.ones((6, 6, 1), np.uint8))
    query: dict[str, Any] = {"overlay_format": "png", "model": "plain"}
    plain = opened(post(client, png(large), output="overlay", **query).content)
    drawn = opened(post(client, png(large), output="overlay", legend=True, **query).content)
    changed = (plain != drawn).any(axis=2)
    assert 0.01 < changed.mean() <= 0.2
    beside = opened(post(client, png(large), output="side-by-side", legend=True, **query).content)
    assert (beside[:, large.shape[1] :] == drawn).all()
    assert (beside[:, : large.shape[1]] == large).all()
    refused = post(client, png(large), output="mask,json", legend=True, **query)
    assert refused.status_code == 400
    assert "output=overlay" in refused.json()["detail"]
