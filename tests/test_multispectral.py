"""More than three channels, from GDAL's files to the service's mask.

The data are 16-bit TIFF files of four bands whose classes differ in the fourth band alone. So a
channel that is dropped, scrambled or scaled differently anywhere on the way changes the labels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

import model
from export.__main__ import main as export
from model import checkpoint
from model.data.__main__ import main as data_command
from model.data.check import check
from model.data.dataset import find
from model.evaluate.__main__ import main as evaluate
from model.train.__main__ import main as train
from tests.model.recipes import TWO_CLASSES
from tests.service.web import opened, photo, png, post, serving

SIDE = 65
RANGE = (200, 8200)  # of the stored values
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]

CHANNELS = f"channels = 4\nsample_range = {[*RANGE]}\n"
RECIPE = TWO_CLASSES.replace("num_classes = 2\n", f"num_classes = 2\n{CHANNELS}") + "jitter = 0.1\n"


def scene(seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Bands (H, W, 4) and class ids (H, W): noise, and a half that is bright in the fourth band."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((SIDE, SIDE), np.uint8)
    ids[:, : int(rng.integers(24, 42))] = 1
    if seed % 2:
        ids = 1 - ids
    pixels = rng.integers(*RANGE, (SIDE, SIDE, 4)).astype(np.uint16)
    pixels[..., 3] = np.where(ids == 1, 6000, 1500) + rng.integers(-500, 500, ids.shape)
    return pixels, ids


def write(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    height, width, count = pixels.shape
    size = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **size, **options) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def send(client: TestClient, body: bytes, **query: Any) -> Any:
    return post(client, body, headers={"Content-Type": "image/tiff"}, **query)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set: twelve photos for training, three for evaluation."""
    root = tmp_path_factory.mktemp("field")
    (root / "dataset.toml").write_text(f'classes = ["soil", "crop"]\n{CHANNELS}')
    for split, seeds in (("train", range(12)), ("val", range(100, 103))):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for seed in seeds:
            pixels, ids = scene(seed)
            options = {"compress": "LZW", "predictor": 2, "photometric": "MINISBLACK"}
            write(root / "images" / split / f"{seed}.tif", pixels, **options)
            Image.fromarray(ids).save(root / "masks" / split / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.toml").write_text(RECIPE)
    args = [str(folder / "recipe.toml"), "--data", str(data), "--out", str(folder / "run")]
    assert train([*args, "--workers", "0"]) == 0
    return folder / "run" / "model"


@pytest.fixture(scope="module")
def served(trained: Path) -> Path:
    """A folder with the exported file."""
    folder = trained.parent / "models"
    assert export([str(trained), "-o", str(folder / "field.onnx"), "--confidence"]) == 0
    return folder


def test_a_class_that_only_the_fourth_band_shows_is_learnt(trained: Path, data: Path) -> None:
    found = trained.parent / "figures.json"
    assert evaluate([str(trained), "--data", str(data), "--json", str(found)]) == 0
    assert json.loads(found.read_text())["miou"] > 0.8


def test_a_four_band_file_is_segmented_as_in_training(served: Path, trained: Path) -> None:
    """POST /segment gives the mask of model.predict, whole, shrunk and in windows."""
    net = model.load(trained)
    with serving(served) as client:
        for side in (SIDE, 100):  # 100: larger than the model's input
            pixels = scene(100)[0].repeat(2, 0).repeat(2, 1)[:side, :side]
            path = write(trained.parent / f"{side}.tif", pixels, tiled=True, interleave="BAND")
            answer = send(client, path.read_bytes(), output="mask")
            assert answer.status_code == 200
            mask = opened(answer.content)
            assert mask.shape == (side, side)
            assert (mask == model.predict(net, path)).mean() > 0.999
        answer = send(client, path.read_bytes(), output="mask", fit="sliding")
        assert opened(answer.content).shape == (100, 100)


def test_pictures_show_the_first_three_bands(served: Path, tmp_path: Path) -> None:
    """An overlay without opacity is the photo: red, green and blue are bands 1, 2 and 3."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4)).astype(np.uint8)
    path = write(tmp_path / "photo.tif", pixels)
    query = {"output": "overlay", "alpha": 0, "overlay_format": "png"}
    with serving(served) as client:
        answer = send(client, path.read_bytes(), **query)
        assert (opened(answer.content) == pixels[..., :3]).all()
        again = send(client, path.read_bytes(), **query, smooth=True)
        assert again.status_code == 400  # the file has no probabilities; the photo was no problem


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("png", "it has 3 channels, and the network takes 4: a TIFF of 4 bands of 8 or 16 bits"),
        ("three bands", "it has 3 channels, and the network takes 4"),
        ("five bands", "it has 5 channels, and the network takes 4"),
        ("float", "gdal_translate -ot UInt16 -scale"),
        ("cut off", "truncated or broken"),
    ],
)
def test_other_files_get_a_400_that_says_what_to_send(
    served: Path, tmp_path: Path, kind: str, says: str
) -> None:
    if kind == "png":
        body = png(photo())
    else:
        count = {"three bands": 3, "five bands": 5}.get(kind, 4)
        pixels = np.ones((40, 50, count), np.float32 if kind == "float" else np.uint16)
        body = write(tmp_path / "odd.tif", pixels, compress="DEFLATE").read_bytes()
        body = body[: len(body) - 40] if kind == "cut off" else body
    with serving(served) as client:
        answer = send(client, body)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_model_for_photos_refuses_bands_instead_of_dropping_some(
    tmp_path: Path, bits: int
) -> None:
    from tests.service import onnx_models

    onnx_models.save(tmp_path / "photos.onnx")
    pixels = np.zeros((40, 50, 4), f"uint{bits}")
    path = write(tmp_path / "bands.tif", pixels, photometric="MINISBLACK")
    with serving(tmp_path) as client:
        answer = send(client, path.read_bytes())
    assert answer.status_code == 400
    assert "has 4 bands, and the model takes the 3 of RGB" in answer.json()["detail"]
    assert "-b 1 -b 2 -b 3" in answer.json()["detail"]


def test_tensors_have_as_many_channels_as_the_model(served: Path) -> None:
    with serving(served) as client:
        described = client.get("/v2/models/field").json()
        assert described["inputs"][0]["shape"] == [-1, SIDE, SIDE, 4]
        pad = client.get("/models").json()["models"][0]["input"]["pad"]
        assert pad == [128, 128, 128, 128]
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3]}
        refused = client.post("/v2/models/field/infer", json={"inputs": [tensor | {"data": [0]}]})
    assert refused.status_code == 400
    assert f"must be [N, {SIDE}, {SIDE}, 4]" in refused.json()["detail"]


def test_a_data_set_and_a_network_must_have_the_same_channels(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message of training and evaluation names both keys and both values."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace(CHANNELS, ""))
    args = [str(recipe), "--data", str(data), "--out", str(tmp_path / "run"), "--workers", "0"]
    assert train(args) != 0
    assert "has channels=4 and the network model.channels=3" in capsys.readouterr().err
    assert train([*args, "--set", "model.channels=4"]) != 0
    assert "sample_range=[200.0, 8200.0] and the network model.sample_range=nothing" in (
        capsys.readouterr().err
    )


def test_check_reads_bands_and_proposes_mean_and_deviation(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(find("folder", data, "train"))
    assert report.usable
    pixels = np.concatenate([scene(seed)[0] for seed in range(12)]).reshape(-1, 4)
    exact = (pixels.astype(float) - RANGE[0]) * 255 / (RANGE[1] - RANGE[0])
    assert np.allclose(report.mean, exact.mean(0), atol=0.5)
    assert np.allclose(report.std, exact.std(0), atol=0.5)
    assert data_command(["check", str(data), "--split", "train"]) == 0
    assert "model.mean=[" in capsys.readouterr().out


def test_a_photo_in_a_set_of_bands_is_named(data: Path, tmp_path: Path) -> None:
    """A JPEG among the TIFF files is a broken pair of `check`, not a crash."""
    root = tmp_path / "set"
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "dataset.toml").write_text((data / "dataset.toml").read_text())
    Image.new("RGB", (65, 65)).save(root / "images" / "train" / "0.jpg")
    Image.new("L", (65, 65)).save(root / "masks" / "train" / "0.png")
    report = check(find("folder", root, "train"))
    assert "it is no TIFF, and the network takes 4 bands" in report.problems[0]


def test_the_checkpoint_keeps_channels_range_and_every_mean(trained: Path) -> None:
    """Three means of RGB were given by default: the fourth is their average."""
    config = checkpoint.read_card(trained).model
    assert (config.channels, config.sample_range) == (4, (200, 8200))
    assert config.mean == (127.5,) * 4
