"""model.predict, the exported file and HTTP give the same mask for the same photo."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

import model
from export.evaluate import predict
from model import checkpoint
from model.network.inference import label_map
from service.http.app import create_app
from service.inference import models
from service.settings import BUNDLED, Settings

NAME = "efficientnet-lite0-voc"
CHECKPOINT = Path(checkpoint.__file__).parent / "bundled" / NAME
SAMPLES = sorted((BUNDLED.parent / "samples").glob("*.jpg"))

Masks = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def served() -> models.Models:
    return models.load(Settings(device="cpu", max_batch=1))


@pytest.fixture(scope="module")
def client(served: models.Models) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(device="cpu", max_batch=1), served)) as client:
        yield client


def mask_of(client: TestClient, path: Path, **options: str) -> NDArray[np.uint8]:
    answer = client.post(
        "/segment", params={"model": NAME, **options}, files={"file": path.read_bytes()}
    )
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


@pytest.fixture(scope="module")
def over_http(client: TestClient) -> Masks:
    return {path.stem: mask_of(client, path) for path in SAMPLES}


def read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_bundled_file_comes_from_the_bundled_checkpoint(served: models.Models) -> None:
    contract = served.get(NAME).engine.contract
    assert contract.checkpoint_sha256 == checkpoint.digest(CHECKPOINT)
    assert contract.classes == checkpoint.read_card(CHECKPOINT).classes


@pytest.mark.slow
def test_the_bundled_file_gives_everything_that_a_request_can_ask_for(
    served: models.Models, client: TestClient
) -> None:
    """`make serve` shows every option, without a further export."""
    contract = served.get(NAME).engine.contract
    assert contract.confidence
    assert contract.calibration is not None
    assert contract.calibration.images >= 100
    files = {"file": SAMPLES[0].read_bytes()}
    options = {"output": "probabilities", "coverage": "0.95", "smooth": "true", "threshold": "best"}
    answer = client.post("/segment", params={"model": NAME, **options}, files=files)
    assert answer.status_code == 200, answer.text


@pytest.mark.slow
def test_http_gives_the_exported_files_mask_pixel_for_pixel(
    served: models.Models, over_http: Masks
) -> None:
    engine = served.get(NAME).engine
    for path in SAMPLES:
        assert (
            over_http[path.stem] == predict(engine.run, engine.contract.input, read(path))
        ).all(), path.name


@pytest.mark.slow
def test_http_gives_pytorchs_mask(over_http: Masks) -> None:
    net = checkpoint.load(CHECKPOINT)
    for path in SAMPLES:
        agreement = (over_http[path.stem] == label_map(net, read(path))).mean()
        assert agreement >= 0.999, path.name


@pytest.mark.slow
def test_the_bundled_model_finds_the_object_in_each_sample(over_http: Masks) -> None:
    """A bundled model that finds no cat in the photo of a cat must not be shipped."""
    classes = checkpoint.read_card(CHECKPOINT).classes
    for name, label in (("cat", "cat"), ("astronaut", "person")):
        share = (over_http[name] == classes.index(label)).mean()
        assert share > 0.2, (name, share)


@pytest.mark.slow
def test_refined_masks_are_the_same_over_http_and_from_python(
    client: TestClient, over_http: Masks
) -> None:
    options = {"min_area": "0.2%", "fill_holes": "5%", "min_confidence": "0.5,person:0.8"}
    net = checkpoint.load(CHECKPOINT)
    for path, smooth in zip(SAMPLES, itertools.cycle([True, False])):
        mask = mask_of(client, path, **options, smooth=str(smooth).lower())
        from_python = model.predict(net, path, smooth=smooth, **options)  # type: ignore[arg-type] # all are text
        assert (mask == from_python).mean() >= 0.999, path.name
        assert (mask != over_http[path.stem]).any(), path.name
