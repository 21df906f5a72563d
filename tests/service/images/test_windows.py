"""Sliding windows cover a photo once, use the most central window, and are limited in number."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from postprocess import windows
from postprocess.errors import TooLarge
from postprocess.windows import Sliding
from service.inference.contract import InputSize
from service.settings import Settings
from tests.service import onnx_models
from tests.service.web import opened, photo, png, post, serving

TARGET = InputSize(
    policy="fixed", height=onnx_models.SIZE[0], width=onnx_models.SIZE[1], pad=(9, 9, 9)
)
LARGE = photo(130, 217)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx", confidence=True, on_request=True)
    with serving(folder, max_windows=30) as client:
        yield client


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("window", [1, 2, 33, 64])
def test_windows_cover_an_axis_once_and_overlap_enough(window: int, overlap: float) -> None:
    for length in range(1, 300):
        spans = windows.spans(length, window, overlap)
        covered = [at for span in spans for at in range(*span.keep)]
        assert covered == list(range(length))
        for span in spans:  # what a window keeps is inside of it, and it inside of the photo
            assert span.start <= span.keep[0] < span.keep[1] <= span.start + window
            assert span.start + window <= max(length, window)
        for left, right in pairwise(spans):
            shared = left.start + window - right.start
            assert shared >= min(round(window * overlap), window - 1)
            # the border is in the middle of what they share
            assert abs((left.keep[1] - right.start) - shared / 2) <= 0.5


def test_each_pixel_takes_the_label_of_its_most_central_window() -> None:
    size = (150, 100)
    pieces = windows.cut(np.zeros((*size[::-1], 3), np.uint8), size, TARGET, 0.5)
    numbers = [np.full(onnx_models.SIZE, index, np.uint8) for index in range(len(pieces))]
    merged = windows.merge(numbers, pieces, size)
    centres = np.array([(piece.y.start + 23.5, piece.x.start + 31.5) for piece in pieces])
    y, x = np.mgrid[:100, :150]
    away_y = np.abs(y[..., None] - centres[:, 0])
    away_x = np.abs(x[..., None] - centres[:, 1])
    chosen = np.take_along_axis
    for away in (away_y, away_x):  # nearest along either axis
        mine = chosen(away, merged[..., None].astype(np.intp), axis=2)[..., 0]
        assert (mine <= away.min(axis=2) + 1).all()


def test_the_limit_is_exact() -> None:
    windows.check((64 + 48, 48), TARGET, Sliding(0.25, 2))
    with pytest.raises(TooLarge, match=r"needs at least 3 windows .* limit is 2"):
        windows.check((64 + 49, 48), TARGET, Sliding(0.25, 2))


@pytest.mark.parametrize("most", [2, 29, 30, 43, 89])
def test_the_error_names_the_largest_overlap_that_the_limit_allows(most: int) -> None:
    size = (333, 222)
    with pytest.raises(TooLarge) as refused:
        windows.check(size, TARGET, Sliding(0.5, most))
    fewest = windows.count(size, TARGET, 0)
    if fewest > most:
        assert f"even without overlap it needs {fewest}" in str(refused.value)
        return
    named = float(str(refused.value).partition("use overlap=")[2].split()[0])
    windows.check(size, TARGET, Sliding(named, most))
    with pytest.raises(TooLarge):
        windows.check(size, TARGET, Sliding(named + 0.01, most))


def test_a_photo_of_12_megapixels_is_cut_with_the_default_settings() -> None:
    target = InputSize(policy="fixed", height=513, width=513, pad=(0, 0, 0))
    most = Settings.model_fields["max_windows"].default
    windows.check((4000, 3000), target, Sliding(windows.OVERLAP, most))
    windows.check((3456, 4608), target, Sliding(windows.OVERLAP, most))


def test_a_photo_is_counted_as_it_is_turned(client: TestClient) -> None:
    """217 x 130 takes 30 windows, 130 x 217 takes 36; this service allows 30."""
    lying, upright = (
        post(client, png(photo(*size)), fit="sliding", overlap=0.5)
        for size in ((130, 217), (217, 130))
    )
    assert lying.status_code == 200
    assert (upright.status_code, upright.json()["code"]) == (413, "image-too-large")
    assert "needs at least 36 windows" in upright.json()["detail"]


@pytest.mark.parametrize("size", [(48, 64), (1, 1), (33, 64), (48, 20)])
@pytest.mark.parametrize("output", ["mask", "json", "overlay", "npz", "confidence"])
def test_a_photo_that_fits_one_window_is_answered_as_without_windows(
    client: TestClient, size: tuple[int, int], output: str
) -> None:
    body = png(photo(*size))
    plain = post(client, body, output=output)
    assert post(client, body, output=output, fit="sliding").content == plain.content


@pytest.mark.parametrize("size", [(49, 64), (48, 65), (130, 217), (20, 200), (130, 10)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_a_large_photo_keeps_its_own_resolution(
    client: TestClient, size: tuple[int, int], overlap: float
) -> None:
    """The tiny model labels single pixels, so cutting and merging must not change any label."""
    image = photo(*size)
    answer = post(client, png(image), fit="sliding", overlap=overlap, output="npz")
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert (arrays["labels"] == onnx_models.expected(image)).all()
        assert (arrays["confidence"] == image[..., 0]).all()
    assert (opened(post(client, png(image)).content) != onnx_models.expected(image)).any()


def test_windows_follow_the_orientation_of_the_photo(client: TestClient) -> None:
    upright = photo(150, 60)
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
    out = io.BytesIO()
    turned.save(out, "PNG", exif=exif)
    mask = opened(post(client, out.getvalue(), fit="sliding").content)
    assert (mask == onnx_models.expected(upright)).all()


def test_too_many_windows_are_a_problem_that_says_what_to_change(client: TestClient) -> None:
    answer = post(client, png(photo(300, 300)), fit="sliding", overlap=0.5)
    assert (answer.status_code, answer.json()["code"]) == (413, "image-too-large")
    assert "the limit is 30" in answer.json()["detail"]
    assert "fit=resize" in answer.json()["detail"]
    assert (
        post(client, png(photo(300, 300)), overlap=0.5).status_code == 200
    )  # not cut, so not counted


@pytest.mark.parametrize("query", [{"fit": "tiles"}, {"overlap": "0.6"}, {"overlap": "-1"}])
def test_a_wrong_value_is_a_problem(client: TestClient, query: dict[str, Any]) -> None:
    answer = post(client, png(LARGE), **query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")


def test_sliding_can_be_the_default_of_the_service(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, fit="sliding") as client:
        assert (opened(post(client, png(LARGE)).content) == onnx_models.expected(LARGE)).all()
        shrunk = opened(post(client, png(LARGE), fit="resize").content)
        assert (shrunk != onnx_models.expected(LARGE)).any()


def test_windows_share_batches_and_their_memory_is_counted(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path, max_pending_pixels=50_000, max_batch=4) as client:
        many = [("file", (f"{n}.png", png(LARGE), "image/png")) for n in range(2)]
        sliding = client.post("/segment", files=many, params={"fit": "sliding"})
        assert sliding.status_code == 413  # 2 * 130 * 217 pixels, and as many windows
        assert post(client, png(LARGE), fit="sliding", overlap=0).status_code == 200
        metrics = client.get("/metrics").text
    assert 'deeplab_batch_size_bucket{le="4",model="tiny"} 3.0' in metrics
    assert 'deeplab_batch_size_sum{model="tiny"} 12.0' in metrics


def test_several_photos_slide_together(client: TestClient) -> None:
    files = [("file", (f"{n}.png", png(photo(60, 100, n)), "image/png")) for n in range(2)]
    answer = client.post(
        "/segment", files=files, params={"fit": "sliding"}, headers={"Accept": "multipart/mixed"}
    )
    assert answer.status_code == 200
    for n in range(2):
        expected = onnx_models.expected(photo(60, 100, n))
        assert _mask_of(answer.content, f"{n}.mask.png").tolist() == expected.tolist()


def _mask_of(body: bytes, name: str) -> np.ndarray:
    head, _, rest = body.partition(f'filename="{name}"\r\n\r\n'.encode())
    size = int(head.rpartition(b"Content-Length: ")[2].partition(b"\r")[0])
    assert json.loads(body.partition(b"\r\n\r\n")[2].partition(b"\r\n")[0])["results"]
    return opened(rest[:size])
